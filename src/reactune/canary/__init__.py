"""Two models, one verdict: users are assigned at random, and the verdict keeps its error rate.

`routing` assigns units to arms, `outcomes` counts what users did, `sequential` has the statistics,
`guardrails` the harms that are watched, `compare` the comparison and the verdict, `rollout` the
changes of what is live, and `power` the planned size.
"""
