"""How fast the embedded server writes, by how its threads wait, alone and beside other programs.

    python bench/threads.py

Ours (a short spin, then sleep) beside OpenMP's default and threads that sleep at once, in one run.
Threads that never sleep are left out: beside other programs they hardly progress.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from reactune.config.sections import ExportConfig, ModelConfig, PromptConfig, ServeConfig
from reactune.environment import SPINS
from reactune.model.files import base_model
from reactune.model.prompt import load_chat, render
from reactune.records import ModelVersion, Sampling
from reactune.release.gguf import export_release
from reactune.release.runtimes import connect
from record import record

NAMES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
WAYS: dict[str, dict[str, str]] = {
    f"ours, {SPINS} spins": {},
    "OpenMP's default": {"GOMP_SPINCOUNT": "300000"},  # what libgomp documents where none is set
    "passive": {"GOMP_SPINCOUNT": "0"},
}
TOKENS, TIMES = 24, 3
QUESTION = "How do I begin with an essay that I do not want to write?"


def main() -> None:
    """Measure, print and record."""
    base = base_model(ModelConfig())
    chat = load_chat(base.folder, PromptConfig())
    text = render(chat, QUESTION)
    figures: dict[str, object] = {"load before": psutil.getloadavg()[0], "tokens": TOKENS}
    print(f"tokens a second on {os.cpu_count()} cores: alone, and beside as many other programs")
    with tempfile.TemporaryDirectory() as name:
        settings = ExportConfig()
        model = export_release(base, chat, None, Path(name), run_id="bench", settings=settings)
        for way, variables in WAYS.items():
            with environment(variables):
                alone = tokens_per_second(model, text)
                with others():
                    beside = tokens_per_second(model, text)
            figures[way] = {"alone": alone, "beside others": beside}
            print(f"{way:20} {alone:8.1f} {beside:8.1f}")
    print(f"kept in {record('threads', figures, packages=('xllamacpp',)).name}")


def tokens_per_second(model: ModelVersion, text: str) -> float:
    """The best of some tries to write so many tokens, one after the other."""
    runtime = connect(ServeConfig(timeout_seconds=300))
    try:
        runtime.publish(model)
        best = 0.0
        for seed in range(TIMES + 1):
            found = runtime.generate(model, text, Sampling(0.7, 0.95, TOKENS, seed))
            best = max(best, found.tokens / found.seconds)
        return best
    finally:
        runtime.close()


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Start servers with these variables, and none of the others."""
    before = {name: os.environ.pop(name, None) for name in NAMES}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in NAMES:
            os.environ.pop(name, None)
        os.environ.update({name: value for name, value in before.items() if value is not None})


@contextlib.contextmanager
def others() -> Iterator[None]:
    """As many programs that compute as there are cores."""
    work = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(work) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
