"""TODO pii."""
