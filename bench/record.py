"""Keep what a benchmark measured: one entry per run in bench/results/NAME.json."""

import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from reactune.records import write_atomically

RESULTS = Path(__file__).parent / "results"


def record(name: str, figures: Mapping[str, Any], *, packages: tuple[str, ...] = ()) -> Path:
    """Append the figures, with machine, versions (reactune's and `packages`') and date."""
    entry = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("reactune", *packages)},
            "commit": commit(),
        },
        "figures": dict(figures),
    }
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.json"
    file.write_text(json.dumps([*recorded(name), entry], indent=1) + "\n")
    return file


def recorded(name: str) -> list[dict[str, Any]]:
    """The entries of a benchmark, oldest first; none before its first."""
    file = RESULTS / f"{name}.json"
    found: list[dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else []
    return found


class Cells:
    """What was measured, one JSON file a cell; a cell that is there is not measured again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The cell of this name, measured if it is not there."""
        file = self.folder / f"{name.replace(' ', '-').replace('/', '_')}.json"
        if not file.is_file():
            write_atomically(file, json.dumps(measure()))
            print(f"  measured {name}: {file.read_text()[:160]}", flush=True)
        found: dict[str, Any] = json.loads(file.read_text())
        return found


def _processor() -> str:
    names = [
        line.partition(":")[2].strip()
        for line in _lines(Path("/proc/cpuinfo"))
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor()


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.is_file() else []


def commit() -> str:
    """The checked-out commit, or `unknown`."""
    answer = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=RESULTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return answer.stdout.strip() or "unknown"
