"""The demo: an audience with hidden tastes, and a pool of tips that the base model wrote.

Nothing of the rooms imports it; the learner sees only `tip_scores`.
"""
