"""A dataset of examples, the same for the same rows and settings, or the reason to wait.

`rules` choose examples and split them by user or time, `near_duplicates` finds texts that nearly
repeat, `exports` writes the files, and `build` does it all and writes the card.
"""
