"""Two models, one verdict: which arm answers, what people did, and who stays."""
