"""Reactions -> training examples that hold no personal data and do not depend on their order.

`ingest` reads files (`readers`) into the database; `columns` says which columns are ours. `labels`
selects evidence from it or from any other engine, `deidentify` makes rows safe, `labelled` keeps
them between two stages, and `dataset` chooses examples and writes them.
"""
