"""Every change of the tables, in order; the store runs them."""
