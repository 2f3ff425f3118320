"""A simulated audience with preferences that the learner does not know, and the loop run on it.

`loop` runs days, trainings and rollouts, `report` writes the page about them. `audience` holds
the protocol of an audience and the built-in one, whose people are in `situations` and react by
`preferences`; `pool` saves the time of generating the base model's tips.
"""
