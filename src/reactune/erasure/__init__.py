"""TODO erasure."""
