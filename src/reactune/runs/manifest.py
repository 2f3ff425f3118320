"""The manifest of a stage: what it read and wrote. Written last, so its presence means done."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from reactune.records import STAGES, sha256_of, write_atomically

MANIFEST = "manifest.json"
Outcome = Literal["done", "waiting", "refused"]


@dataclass(frozen=True)
class Manifest:
    """What one stage of a run read and wrote. Inputs and outputs map file names to SHA-256 digests.

    `kept_at` is the URL of the outputs if this is a worker's copy of a remote manifest. `erased`
    lists the erasures that changed inputs or outputs since, with the digests of before.
    """

    stage: str
    outcome: Outcome
    summary: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    counts: Mapping[str, Any]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    seconds: float
    finished_at: str
    kept_at: str = ""
    erased: Sequence[Mapping[str, Any]] = field(default_factory=list)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` into a stage's folder, atomically."""
    write_atomically(folder / MANIFEST, json.dumps(asdict(manifest), indent=2, default=str))


def read_manifest(folder: Path) -> Manifest | None:
    """The stage's manifest if it is complete and its outputs match their digests, else None.

    Outputs kept at a URL are verified when they are fetched.
    """
    manifest = recorded_manifest(folder)
    if manifest is None:
        return None
    is_intact = bool(manifest.kept_at) or all(
        is_file_of_digest(folder / name, digest) for name, digest in manifest.outputs.items()
    )
    return manifest if is_intact else None


def recorded_manifest(folder: Path) -> Manifest | None:
    """The stage's manifest if it is complete, else None; its outputs are not verified."""
    file = folder / MANIFEST
    if not file.is_file():
        return None
    try:
        return Manifest(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        return None


def manifests(run: Path) -> dict[str, Manifest]:
    """The valid manifests of a run, by stage, in the order of the stages."""
    found = ((stage, read_manifest(run / stage)) for stage in STAGES)
    return {stage: manifest for stage, manifest in found if manifest}


def recorded_manifests(run: Path) -> dict[str, Manifest]:
    """The complete manifests of a run, by stage; their outputs are not verified."""
    found = ((stage, recorded_manifest(run / stage)) for stage in STAGES)
    return {stage: manifest for stage, manifest in found if manifest}


def recorded_outputs(run: Path, stages: Iterable[str]) -> dict[str, str]:
    """Digests of the files that the manifests of these stages name, by path in the run's folder."""
    recorded = recorded_manifests(run)
    return {
        f"{stage}/{name}": digest
        for stage in stages
        if stage in recorded
        for name, digest in recorded[stage].outputs.items()
    }


def ending(run: Path) -> Manifest | None:
    """The manifest that ended the run: deployed, waiting or refused; None while it is open."""
    return next((each for each in manifests(run).values() if _ends_run(each)), None)


def is_ended(run: Path) -> bool:
    """Whether the run was deployed, waits or was refused; its files are not verified."""
    return any(map(_ends_run, recorded_manifests(run).values()))


def generator_run(run: Path) -> str:
    """The run that trained the generator which this one released: itself, unless its gate said no.

    `evaluate` counts it where it chose an earlier generator; the base is of the run `base`.
    """
    evaluated = recorded_manifest(run / "evaluate")
    return str(evaluated.counts.get("generator_run", run.name)) if evaluated else run.name


def is_file_of_digest(file: Path, digest: str) -> bool:
    """Whether the file exists and has this SHA-256."""
    return file.is_file() and sha256_of(file) == digest


def _ends_run(manifest: Manifest) -> bool:
    return manifest.outcome != "done" or manifest.stage == STAGES[-1]
