"""TODO deidentify."""
