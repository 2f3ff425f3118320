"""Reactions -> training examples: ingest, labels, de-identification, rules, files."""
