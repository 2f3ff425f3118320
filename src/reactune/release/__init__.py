"""A trained adapter -> the model that is served, with the proof that the two are the same.

`gguf` writes the release to disk; `parity` is the proof; `registry` logs and registers it in
MLflow; `runtimes` lists the model servers, `llamacpp` (embedded), `ollama`,
and `openai` (any server of its completions API).
"""
