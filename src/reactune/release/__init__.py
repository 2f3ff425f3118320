"""Adapter -> a model that may be served: gate, GGUF, parity, registry, model servers."""
