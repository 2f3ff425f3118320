"""TODO service."""
