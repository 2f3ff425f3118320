"""An erased user is erased everywhere: database, datasets, models' records, and it can be verified.

`requests` erases from the database and keeps the journal, `runs` erases from run folders, `erase`
does the steps of every open erasure, and `verify` searches for what is left.
"""
