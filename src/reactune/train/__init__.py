"""Examples -> adapter: each back-end a process of its own, `job.json` in, adapter folder out."""
