"""Erased rows leave every run: its datasets are rewritten, and its manifests say so.

Finished runs keep their models, and state the digests of the rewritten files. Unfinished runs end,
and expired ones are removed. What a run held is recorded before it is erased, so that a repetition
after a kill erases and records the same.
"""

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from reactune import deployment
from reactune.config.sections import DataConfig
from reactune.config.settings import Config
from reactune.data.dataset.build import CARD
from reactune.data.dataset.exports import EXAMPLES, write_jsonl
from reactune.data.labelled import LABELLED, REFUSED, workspace, write_groups
from reactune.erasure import requests
from reactune.erasure.requests import ErasedTexts, Erasure, RunMatch, add_fingerprints, erasures_of
from reactune.errors import DataError
from reactune.privacy.hashing import HashingKeys
from reactune.records import STAGES, sha256_of, write_atomically
from reactune.release import registry
from reactune.reward.cache import FEATURES
from reactune.runs.folders import all_runs, versions
from reactune.runs.locks import hold_stages
from reactune.runs.manifest import (
    MANIFEST,
    Manifest,
    generator_run,
    is_ended,
    is_file_of_digest,
    recorded_manifests,
    recorded_outputs,
    write_manifest,
)
from reactune.runs.remote import (
    CONFIG,
    ERASED,
    RunRoot,
    download,
    files_of_run,
    push,
    remove_files,
    remove_run,
)
from reactune.store import queries
from reactune.store.database import reading, writing

if TYPE_CHECKING:
    import pyarrow as pa

DATA_STAGES = ("extract", "dataset", "reward")
"""Stages whose outputs hold rows of users."""
EXTRACTED = (f"extract/{LABELLED}", f"extract/{REFUSED}")
CHOSEN = (f"dataset/{EXAMPLES}", f"dataset/{REFUSED}")
READ = (f"reward/{FEATURES}",)
TABLES = (*EXTRACTED, *CHOSEN, *READ)
"""Files of a run with a user in each row; of the first two stages each row is in one of two."""
SCRATCH = ".erasing"
MEMORY_GB = DataConfig().memory_gb

Note = Mapping[str, Any]
"""A manifest's entry on one erasure: its id, when it was requested, and the number of rows."""


@dataclass(frozen=True)
class Targets:
    """The rows to erase, each with the erasure that requested it."""

    of_user: Mapping[str, str] = field(repr=False)
    """`user_key` = erasure."""
    of_tip: Mapping[str, str] = field(repr=False)
    """`tip_id` = erasure."""
    older_than: datetime | None = None
    of_age: str = ""
    """The erasure of rows that are older."""

    def erasure_of(self, tip_id: str, user_key: str, created_at: datetime | None) -> str | None:
        """The erasure that requested this row, or None."""
        is_old = bool(self.older_than and created_at and created_at < self.older_than)
        erasure_id = self.of_user.get(user_key) or self.of_tip.get(tip_id)
        return erasure_id or (self.of_age if is_old else None)


@dataclass(frozen=True)
class Row:
    """A row to erase, and its file; the texts of a refused row are empty."""

    erasure_id: str
    file: str
    user_key: str
    tip_id: str
    tip: str
    context_json: str
    is_learned: bool
    """A model was trained on it, and its user was erased."""


def erase_from_runs(
    config: Config,
    engine: sa.Engine,
    root: RunRoot,
    hashing_keys: HashingKeys,
    erasures: Sequence[Erasure],
) -> None:
    """Erase from every run; remove expired runs, and those of versions out of use.

    Raises:
        DataError: a run is in use, or a file of one cannot be read.
        ReleaseError: MLflow is away.
    """
    if any(each.scope == "expired" for each in erasures):
        _remove_unused_versions(config, engine, root)
    targets = _targets(erasures)
    ids = [each.erasure_id for each in erasures]
    live = _live_runs(engine, root)
    for run in all_runs(root.folder):
        if targets.older_than and _started_at(run) < targets.older_than and run.name not in live:
            with hold_stages(root, run, STAGES):
                remove_run(root, run)
        else:
            _erase_from_run(config, engine, root, run, targets, hashing_keys, ids)


def rows_to_erase(run: Path, targets: Targets) -> Iterator[Row]:
    """The rows of a run to erase, from every file with a user in each row.

    Raises:
        DataError: such a file cannot be read.
    """
    for name in TABLES:
        for batch in _batches(run / name):
            for row in batch.filter(_is_target(batch, targets)).to_pylist():
                erasure_id = targets.erasure_of(row["tip_id"], row["user_key"], row["created_at"])
                yield Row(
                    erasure_id=erasure_id or "",
                    file=name,
                    user_key=row["user_key"],
                    tip_id=row["tip_id"],
                    tip=row.get("tip", ""),
                    context_json=row.get("context_json", ""),
                    is_learned=(row.get("part") == "train" or name in READ)
                    and erasure_id != targets.of_age,
                )


def erase_rows(run: Path, targets: Targets, *, note: str) -> None:
    """Rewrite the files of a run without the rows to erase; safe to repeat after a kill.

    The input of the trainer is removed: its rows name no users, and it is not needed after the
    training. `note` is added to the dataset's card.

    Raises:
        DataError: a file cannot be read.
    """
    for stage, tables in (("extract", EXTRACTED), ("dataset", CHOSEN), ("reward", READ)):
        if not (run / stage).is_dir():
            continue
        with _replacing_files(run / stage) as scratch:
            for name in tables:
                _filter(run / name, targets, out=scratch / Path(name).name)
            if (scratch / EXAMPLES).is_file():
                with workspace(scratch, memory_gb=MEMORY_GB) as (connection, _):
                    write_jsonl(connection, scratch)
    _add_to_card(run / "dataset" / CARD, note)
    for folder in sorted((run / "train").glob("*/")):
        if folder.name != "adapter":
            shutil.rmtree(folder)


def _erase_from_run(
    config: Config,
    engine: sa.Engine,
    root: RunRoot,
    run: Path,
    targets: Targets,
    hashing_keys: HashingKeys,
    ids: Sequence[str],
) -> None:
    is_recorded = any(run.name in each.runs for each in erasures_of(engine, ids))
    download(root, run, TABLES if is_recorded else _changed_outputs(run, TABLES))
    leftovers = _leftovers(root, run)
    ended = is_ended(run)
    if ended and not is_recorded and not leftovers and not any(rows_to_erase(run, targets)):
        return
    with hold_stages(root, run, (*DATA_STAGES, "train") if ended else STAGES):
        remove_files(root, run, leftovers)
        rows = list(rows_to_erase(run, targets))
        if not rows and not is_recorded:
            return
        _record(config, engine, run, rows, hashing_keys, ids)
        notes = [_note_of(each, run) for each in erasures_of(engine, ids) if run.name in each.runs]
        if is_ended(run):
            download(root, run, _changed_outputs(run, recorded_outputs(run, DATA_STAGES)))
            erase_rows(run, targets, note="\n".join(map(_card_line, notes)))
            _amend_manifests(root, run, notes)
        else:
            _end_refused(root, run, notes)


def _record(
    config: Config,
    engine: sa.Engine,
    run: Path,
    rows: Sequence[Row],
    hashing_keys: HashingKeys,
    ids: Sequence[str],
) -> None:
    """Record what a run holds before it is erased: rows, fingerprints, and models to replace."""
    learned = {row.erasure_id for row in rows if row.is_learned}
    erasures = {each.erasure_id: each for each in erasures_of(engine, ids)}
    texts: dict[str, ErasedTexts] = defaultdict(ErasedTexts)
    for row in rows:
        if mark := erasures[row.erasure_id].marks.get(row.user_key):
            texts[mark].add(row.tip_id, row.tip, row.context_json)
    days = timedelta(days=config.privacy.retrain_within_days)
    with writing(engine) as connection:
        add_fingerprints(connection, hashing_keys.current, texts)
        models = [
            model
            for model in queries.all_model_versions(connection)
            if run.name in (model.run_id, generator_run(run.parent / model.run_id))
        ]
        for erasure_id, count in _counts(rows).items():
            match = RunMatch(count, learned=erasure_id in learned)
            requests.record_run(connection, erasure_id, run.name, match)
            for model in models if match.learned else ():
                retrain_by = erasures[erasure_id].asked_at + days
                queries.schedule_replacement(connection, model.version, retrain_by)


def _counts(rows: Sequence[Row]) -> Counter[str]:
    """The rows of each erasure, in the one of the two stages that has more of them."""
    extracted, chosen = (
        Counter(row.erasure_id for row in rows if row.file in files)
        for files in (EXTRACTED, CHOSEN)
    )
    return extracted | chosen


def _amend_manifests(root: RunRoot, run: Path, notes: Sequence[Note]) -> None:
    """Write the digests of the rewritten files into the manifests, with notes on why they changed.

    The files are uploaded first, then the manifests. Safe to repeat after a kill.
    """
    digests = {
        name: sha256_of(run / name) if (run / name).is_file() else digest
        for name, digest in recorded_outputs(run, DATA_STAGES).items()
    }
    for stage in DATA_STAGES:
        changed = [name for name in _changed_outputs(run, digests) if name.startswith(f"{stage}/")]
        push(root, run / stage, [name.removeprefix(f"{stage}/") for name in changed])
    for stage, manifest in recorded_manifests(run).items():
        amended = _amended(manifest, digests, notes)
        if amended != manifest:
            write_manifest(run / stage, amended)
            push(root, run / stage, [MANIFEST])
    _record_in_run(root, run, notes)


def _amended(manifest: Manifest, digests: Mapping[str, str], notes: Sequence[Note]) -> Manifest:
    """The manifest with these digests of files of the run, and the notes if one differs."""
    outputs = {
        name: digests.get(f"{manifest.stage}/{name}", digest)
        for name, digest in manifest.outputs.items()
    }
    inputs = {name: digests.get(name, digest) for name, digest in manifest.inputs.items()}
    before, after = {**manifest.inputs, **manifest.outputs}, {**inputs, **outputs}
    changed = {name: digest for name, digest in before.items() if after[name] != digest}
    if not changed:
        return manifest
    new = [{**note, "digests_before": changed} for note in notes]
    return replace(manifest, inputs=inputs, outputs=outputs, erased=[*manifest.erased, *new])


def _end_refused(root: RunRoot, run: Path, notes: Sequence[Note]) -> None:
    """End an unfinished run: remove all that its stages made, and state why in the first."""
    first = recorded_manifests(run).get(STAGES[0])
    made = files_of_run(root, run)
    remove_files(root, run, [f"{stage}/{MANIFEST}" for stage in reversed(STAGES[1:])])
    kept = (CONFIG, ERASED, f"{STAGES[0]}/{MANIFEST}")
    remove_files(root, run, [name for name in made if name not in kept and "/.lock" not in name])
    refused = Manifest(
        stage=STAGES[0],
        outcome="refused",
        summary="refused: it held what was erased since; the next run learns without it",
        inputs={},
        outputs={},
        counts={},
        settings=first.settings if first else {},
        versions=versions(),
        seconds=0.0,
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        erased=list(notes),
    )
    write_manifest(run / STAGES[0], refused)
    push(root, run / STAGES[0], [MANIFEST])
    _record_in_run(root, run, notes)


def _record_in_run(root: RunRoot, run: Path, notes: Sequence[Note]) -> None:
    """With a URL: list the erasures in the run, so that every worker drops its older copies."""
    if not root.url:
        return
    file = run / ERASED
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    new = [note for note in notes if note["erasure"] not in {each["erasure"] for each in known}]
    write_atomically(file, json.dumps([*known, *new], indent=2))
    push(root, run, [ERASED])


def _remove_unused_versions(config: Config, engine: sa.Engine, root: RunRoot) -> None:
    """Remove the versions out of use that were trained on rows of a user who was erased."""
    live = _live_runs(engine, root)
    for version in deployment.to_replace(config):
        model = deployment.version(config, version)
        if model.run_id in live:
            continue
        run = root.folder / model.run_id
        if run.is_dir():
            with hold_stages(root, run, STAGES):
                remove_run(root, run)
        registry.remove_files(config.registry, config.tracking_uri, version)
        with writing(engine) as connection:
            queries.unschedule_replacement(connection, version)


def _targets(erasures: Sequence[Erasure]) -> Targets:
    ages = [(each.older_than, each.erasure_id) for each in erasures if each.older_than]
    older_than, of_age = max(ages, default=(None, ""))
    return Targets(
        of_user={user_key: each.erasure_id for each in erasures for user_key in each.marks},
        of_tip={tip_id: each.erasure_id for each in erasures for tip_id in each.tip_ids},
        older_than=older_than,
        of_age=of_age,
    )


def _live_runs(engine: sa.Engine, root: RunRoot) -> set[str]:
    """The runs of the champion and the challenger, and those that trained their generators."""
    with reading(engine) as connection:
        rollout = queries.current_rollout(connection)
        models = queries.all_model_versions(connection)
    numbers = {rollout.champion, rollout.challenger} if rollout else set()
    runs = {model.run_id for model in models if model.version in numbers}
    return runs | {generator_run(root.folder / name) for name in runs}


def _started_at(run: Path) -> datetime:
    return datetime.strptime(run.name[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC)


def _changed_outputs(run: Path, names: Sequence[str] | Mapping[str, str]) -> list[str]:
    """The outputs of a run among these that are missing, or are not what their manifest states."""
    recorded = recorded_outputs(run, STAGES)
    return [
        name
        for name in names
        if name in recorded and not is_file_of_digest(run / name, recorded[name])
    ]


def _leftovers(root: RunRoot, run: Path) -> list[str]:
    """Files of the data stages that no manifest names: a killed or repeated stage left them."""
    recorded = recorded_outputs(run, DATA_STAGES)
    return [
        name
        for name in files_of_run(root, run)
        if name.startswith(tuple(f"{stage}/" for stage in DATA_STAGES))
        and name not in recorded
        and not Path(name).name.startswith((MANIFEST, ".lock"))
    ]


def _note_of(erasure: Erasure, run: Path) -> Note:
    return {
        "erasure": erasure.erasure_id,
        "at": erasure.asked_at.isoformat(timespec="seconds"),
        "rows": erasure.runs[run.name].rows,
    }


def _card_line(note: Note) -> str:
    return (
        f"Erased, as requested on {note['at'][:10]}: {note['rows']:,} rows (erasure "
        f"{note['erasure']}). Counts, fingerprint and picture are those from before."
    )


def _add_to_card(card: Path, note: str) -> None:
    if not card.is_file():
        return
    text = card.read_text(encoding="utf-8")
    if note not in text:
        write_atomically(card, f"{text.rstrip()}\n\n{note}\n")


def _filter(file: Path, targets: Targets, *, out: Path) -> None:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if not file.is_file():
        return
    with pq.ParquetFile(file) as source:
        schema = source.schema_arrow
    kept = (batch.filter(pc.invert(_is_target(batch, targets))) for batch in _batches(file))
    write_groups(kept, schema, out)


def _is_target(batch: "pa.RecordBatch", targets: Targets) -> "pa.Array":
    """Whether each row is to be erased."""
    import pyarrow as pa
    import pyarrow.compute as pc

    users = pa.array(list(targets.of_user), pa.string())
    tips = pa.array(list(targets.of_tip), pa.string())
    is_requested = pc.or_(
        pc.is_in(batch.column("user_key"), value_set=users),
        pc.is_in(batch.column("tip_id"), value_set=tips),
    )
    if targets.older_than is None:
        return is_requested
    limit = pa.scalar(targets.older_than, pa.timestamp("us", "UTC"))
    is_old = pc.fill_null(pc.less(batch.column("created_at"), limit), fill_value=False)
    return pc.or_(is_requested, is_old)


def _batches(file: Path) -> Iterator["pa.RecordBatch"]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not file.is_file():
        return
    try:
        with pq.ParquetFile(file) as parquet:
            yield from parquet.iter_batches()
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{file} cannot be read, so nothing can be erased from it: {type(error).__name__}; "
            "put it back as it was or delete its run folder, and repeat"
        ) from error


@contextmanager
def _replacing_files(folder: Path) -> Iterator[Path]:
    """A folder whose files take the place of those of the same name, once all are written."""
    scratch = folder / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    yield scratch
    for file in sorted(path for path in scratch.rglob("*") if path.is_file()):
        file.replace(folder / file.relative_to(scratch))
    shutil.rmtree(scratch)
