"""Keep what a benchmark measured: one entry per run in bench/results/NAME.json."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

RESULTS = Path(__file__).parent / "results"


def record(name: str, figures: Mapping[str, Any], *, packages: tuple[str, ...] = ()) -> Path:
    """Append the figures, with machine, versions (reactune's and `packages`') and date."""
    file = RESULTS / f"{name}.json"
    entries = json.loads(file.read_text()) if file.is_file() else []
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
            "commit": _commit(),
        },
        "figures": dict(figures),
    }
    RESULTS.mkdir(exist_ok=True)
    file.write_text(json.dumps([*entries, entry], indent=1) + "\n")
    return file


def _processor() -> str:
    names = [
        line.partition(":")[2].strip()
        for line in _lines(Path("/proc/cpuinfo"))
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor()


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.is_file() else []


def _commit() -> str:
    answer = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=RESULTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return answer.stdout.strip() or "unknown"
