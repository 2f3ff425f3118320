"""User ids are stored as keyed hashes only, and refusals and erasures of users hold for new rows.

`user_ids` holds the rule by which one person has one id, `hashing` the hashing keys and hashed ids,
`consent` decisions, tombstones and admission of rows, `fingerprints` keyed fingerprints of erased
texts.
"""
