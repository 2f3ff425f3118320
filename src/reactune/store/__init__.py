"""The operational database: every row is written once, whole, and under one rule.

`schema` has the tables, `migrations` bring older databases to them, `database` opens, locks and
compacts, `queries` read and write rows, `labels` decides which reactions are evidence.
"""
