"""Whether a trained model may be released, measured on reactions it has not seen.

`gate` scores models on held-out examples and has the rule; `pairs` measures a named model on a file
of preference pairs.
"""
