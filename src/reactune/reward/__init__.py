"""What people like, learned from their reactions: a tip in its context becomes a reward.

`features` turns a tip into numbers, `cache` keeps those of a run, `comparisons` makes of reactions
what a fit needs, `fit` learns and validates on other users, `learn` makes of that a reward and
the teacher of a generator, `model` is one of them, as files, and `quality` says how much it is
worth. `graph` writes the layers that a reward reads for serving,
`scorer` serves them, and `parity` proves that a served reward is the learned one.
"""
