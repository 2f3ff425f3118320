"""What has to hold for the packages as a whole; floors and style are the linters' work."""

import subprocess
import sys
from pathlib import Path

import reactune

ROOT = Path(reactune.__file__).parent
# What an app's service installs none of, and what makes a start slow.
HEAVY = {
    "torch", "transformers", "trl", "peft", "accelerate", "datasets", "mlflow", "ibis", "pyarrow",
    "pandas", "matplotlib", "gguf", "safetensors", "xllamacpp",
    "fsspec", "s3fs", "spacy", "py3langid", "onnxruntime", "onnx", "vl_convert",
}  # fmt: skip
# Packages and modules of which a service, an app or an ingest may import any at its start.
LIGHT = (
    "canary", "cli", "client.http", "client.router", "config", "data", "doctor", "errors", "model",
    "pages.facts", "pages.overview", "pages.pictures", "pages.render", "pages.tables",
    "pages.verdicts", "pages.views", "pii", "privacy", "process", "progress", "records", "release",
    "reward.scorer", "runs", "service", "store", "web",
)  # fmt: skip


def modules_in(place):
    path = ROOT / place.replace(".", "/")
    files = [path.with_suffix(".py")] if path.with_suffix(".py").is_file() else path.rglob("*.py")
    for file in files:
        parts = file.relative_to(ROOT.parent).with_suffix("").parts
        if "migrations" not in parts:
            yield ".".join(parts).removesuffix(".__init__")


def test_what_a_service_needs_starts_without_heavy_libraries():
    names = [name for place in LIGHT for name in modules_in(place)]
    assert {"reactune.service.tips", "reactune.web.server"} <= set(names)
    code = (
        "import sys, importlib\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        f"print(*sorted({HEAVY!r} & sys.modules.keys()))\n"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "\n", "")
