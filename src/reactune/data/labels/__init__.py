"""Labelled rows from any engine, of users who may be learned from.

`sources` is the engine as one table under our column names, `scores` labels, counts and forecasts.
"""
