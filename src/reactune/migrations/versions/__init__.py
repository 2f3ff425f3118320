"""One module per change; written once and never edited."""
