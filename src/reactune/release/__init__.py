"""A trained adapter -> the model that is served, with the proof that the two are the same.

`gguf` writes the release to disk: `merge` puts the adapter into the safetensors, `converter` has
llama.cpp's own converter (its process is `with_converter`) make a GGUF of them. `parity` is the
proof; `registry` logs and registers it in MLflow; `runtimes` lists the model servers, `llamacpp`
(embedded), `ollama`, and `openai` (any server of its completions API).
"""
