"""Rows without personal data, without context keys that are not allowed and without rare values.

`rows` makes one row safe or refuses it, `batches` does so for a whole run in parallel, `file` for
any file, and `audit` proposes which context keys to allow.
"""
