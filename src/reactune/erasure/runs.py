"""What is to be forgotten leaves every run: which files, in what order, and what is written down.

What the files of one run hold is `data/erasure.py`'s; what else an erasure does, `erasing.py`'s.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from reactune.config.sections import DataConfig
from reactune.data.dataset.build import CARD
from reactune.data.dataset.exports import EXAMPLES, write_jsonl
from reactune.data.labelled import LABELLED, REFUSED, workspace, write_groups
from reactune.errors import DataError
from reactune.records import write_atomically

if TYPE_CHECKING:
    import pyarrow as pa

from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import UTC, timedelta

import sqlalchemy as sa

from reactune import deployment
from reactune.config.settings import Config
from reactune.erasure import requests
from reactune.erasure.requests import Erasure, Held, Left, add_prints
from reactune.privacy.hashing import HashingKeys
from reactune.records import STAGES
from reactune.release import registry
from reactune.runs.amend import (
    DATA_STAGES,
    Note,
    amend,
    bring,
    end_refused,
    keep_out_others,
    remove_files,
    remove_run,
    unlike_stated,
    unstated,
)
from reactune.runs.folders import all_runs
from reactune.runs.manifest import is_ended, recorded_outputs
from reactune.runs.remote import RunRoot
from reactune.store import queries
from reactune.store.database import reading, writing

EXTRACTED = (f"extract/{LABELLED}", f"extract/{REFUSED}")
CHOSEN = (f"dataset/{EXAMPLES}", f"dataset/{REFUSED}")
TABLES = (*EXTRACTED, *CHOSEN)
"""Files of a run that say whose each row is; a stage has each row in one of its two."""
SCRATCH = ".erasing"
MEMORY_GB = DataConfig().memory_gb


@dataclass(frozen=True)
class Targets:
    """Rows that are to go, each with the erasure that asked for it."""

    of_user: Mapping[str, str] = field(repr=False)
    """`user_key` = erasure."""
    of_tip: Mapping[str, str] = field(repr=False)
    """`tip_id` = erasure."""
    older_than: datetime | None = None
    of_age: str = ""
    """The erasure that asked for what is older."""

    def erasure_of(self, tip_id: str, user_key: str, created_at: datetime | None) -> str | None:
        """Who asked for this row to go; None: nobody did."""
        is_old = bool(self.older_than and created_at and created_at < self.older_than)
        asked = self.of_user.get(user_key) or self.of_tip.get(tip_id)
        return asked or (self.of_age if is_old else None)


@dataclass(frozen=True)
class Row:
    """A row that is to go, and the file it stands in; of a refused one no texts are known."""

    erasure_id: str
    file: str
    user_key: str
    tip_id: str
    tip: str
    context_json: str
    is_learned: bool
    """A model learned from it, and somebody asked to be forgotten."""


def rows_to_go(run: Path, targets: Targets) -> Iterator[Row]:
    """The rows of a run that are to go, from every file that says whose its rows are.

    Raises:
        DataError: such a file cannot be read.
    """
    for name in TABLES:
        for batch in _batches(run / name):
            chosen = batch.filter(_mask(batch, targets))
            for row in chosen.to_pylist():
                asked = targets.erasure_of(row["tip_id"], row["user_key"], row["created_at"])
                yield Row(
                    erasure_id=asked or "",
                    file=name,
                    user_key=row["user_key"],
                    tip_id=row["tip_id"],
                    tip=row.get("tip", ""),
                    context_json=row.get("context_json", ""),
                    is_learned=row.get("part") == "train" and asked != targets.of_age,
                )


def take_out(run: Path, targets: Targets, *, note: str) -> None:
    """Write the files of a run anew without the rows that are to go; safe to repeat after a kill.

    What the trainer was given goes altogether: it says no more whose its rows are, and is of no
    use after a training. `note` is a line for the dataset's card.

    Raises:
        DataError: a file cannot be read.
    """
    for stage, tables in (("extract", EXTRACTED), ("dataset", CHOSEN)):
        if not (run / stage).is_dir():
            continue
        with _replacing(run / stage) as scratch:
            for name in tables:
                _filter(run / name, targets, out=scratch / Path(name).name)
            if (scratch / EXAMPLES).is_file():
                with workspace(scratch, memory_gb=MEMORY_GB) as (connection, _):
                    write_jsonl(connection, scratch)
    _add_to_card(run / "dataset" / CARD, note)
    drop_training_rows(run)


def drop_training_rows(run: Path) -> None:
    """Remove the folders of trainer processes, with their rows, caches and checkpoints."""
    for folder in sorted((run / "train").glob("*/")):
        if folder.name != "adapter":
            shutil.rmtree(folder)


def _filter(file: Path, targets: Targets, *, out: Path) -> None:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if not file.is_file():
        return
    with pq.ParquetFile(file) as source:
        schema = source.schema_arrow
    kept = (batch.filter(pc.invert(_mask(batch, targets))) for batch in _batches(file))
    write_groups(kept, schema, out)


def _add_to_card(card: Path, note: str) -> None:
    if not card.is_file():
        return
    text = card.read_text(encoding="utf-8")
    if note not in text:
        write_atomically(card, f"{text.rstrip()}\n\n{note}\n")


def _mask(batch: "pa.RecordBatch", targets: Targets) -> "pa.Array":
    """Whether each row is to go."""
    import pyarrow as pa
    import pyarrow.compute as pc

    users = pa.array(list(targets.of_user), pa.string())
    tips = pa.array(list(targets.of_tip), pa.string())
    asked = pc.or_(
        pc.is_in(batch.column("user_key"), value_set=users),
        pc.is_in(batch.column("tip_id"), value_set=tips),
    )
    if targets.older_than is None:
        return asked
    limit = pa.scalar(targets.older_than, pa.timestamp("us", "UTC"))
    return pc.or_(asked, pc.fill_null(pc.less(batch.column("created_at"), limit), fill_value=False))


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
            f"{file} cannot be read, so nothing can be taken out of it: {type(error).__name__}; "
            "put it back as it was or delete its run folder, and repeat"
        ) from error


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A folder whose files take the place of those of the same name, once all are written."""
    scratch = folder / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    yield scratch
    for file in sorted(path for path in scratch.rglob("*") if path.is_file()):
        file.replace(folder / file.relative_to(scratch))
    shutil.rmtree(scratch)


def clear_runs(
    config: Config,
    engine: sa.Engine,
    root: RunRoot,
    hashing_keys: HashingKeys,
    erasures: Sequence[Erasure],
) -> None:
    """Take what is to go out of every run; runs that are too old, or of no use, go altogether."""
    if any(each.scope == "expired" for each in erasures):
        _remove_retired(config, engine, root)
    targets = _targets(erasures)
    ids = [each.erasure_id for each in erasures]
    for run in all_runs(root.folder):
        if targets.older_than and _is_older(config, run, targets.older_than):
            with keep_out_others(root, run, STAGES):
                remove_run(root, run)
        else:
            _clear_run(config, engine, root, run, targets, hashing_keys, ids)


def _clear_run(
    config: Config,
    engine: sa.Engine,
    root: RunRoot,
    run: Path,
    targets: Targets,
    hashing_keys: HashingKeys,
    ids: Sequence[str],
) -> None:
    is_noted = any(run.name in each.runs for each in erasures_of(engine, ids))
    bring(root, run, TABLES if is_noted else unlike_stated(run, TABLES))
    leftovers = unstated(root, run)
    if is_ended(run) and not is_noted and not leftovers and not any(rows_to_go(run, targets)):
        return
    with keep_out_others(root, run, (*DATA_STAGES, "train") if is_ended(run) else STAGES):
        remove_files(root, run, leftovers)
        rows = list(rows_to_go(run, targets))
        if not rows and not is_noted:
            return
        _note(config, engine, run, rows, hashing_keys, ids)
        notes = [_note_of(each, run) for each in erasures_of(engine, ids) if run.name in each.runs]
        if is_ended(run):
            bring(root, run, unlike_stated(run, recorded_outputs(run, DATA_STAGES)))
            take_out(run, targets, note="\n".join(map(_card_line, notes)))
            amend(root, run, notes)
        else:
            why = "it held what was erased since; the next run learns without it"
            end_refused(root, run, notes, why=why)


def _note(
    config: Config,
    engine: sa.Engine,
    run: Path,
    rows: Sequence[Row],
    hashing_keys: HashingKeys,
    ids: Sequence[str],
) -> None:
    """Write down what a run holds before it goes: of whom, whether it was learned, how it read."""
    of_file = {name: Counter(row.erasure_id for row in rows if row.file == name) for name in TABLES}
    of_stage = [sum((of_file[name] for name in of), Counter()) for of in (EXTRACTED, CHOSEN)]
    most = of_stage[0] | of_stage[1]
    learned = {row.erasure_id for row in rows if row.is_learned}
    erasures = {each.erasure_id: each for each in erasures_of(engine, ids)}
    left: dict[str, Left] = defaultdict(Left)
    for row in rows:
        if mark := erasures[row.erasure_id].marks.get(row.user_key):
            left[mark].add(row.tip_id, row.tip, row.context_json)
    days = timedelta(days=config.privacy.retrain_within_days)
    with writing(engine) as connection:
        add_prints(connection, hashing_keys.current, left)
        models = [m for m in queries.all_model_versions(connection) if m.run_id == run.name]
        for erasure_id, count in most.items():
            is_learned = erasure_id in learned
            requests.note_run(connection, erasure_id, run.name, Held(count, learned=is_learned))
            for model in models if is_learned else ():
                retrain_by = erasures[erasure_id].asked_at + days
                queries.replace_version(connection, model.version, retrain_by)


def _remove_retired(config: Config, engine: sa.Engine, root: RunRoot) -> None:
    """Versions that learned from somebody who was erased, and that answer nobody any more, go."""
    used = _live_runs(engine)
    for version in deployment.to_replace(config):
        model = deployment.version(config, version)
        if model.run_id in used:
            continue
        run = root.folder / model.run_id
        if run.is_dir():
            with keep_out_others(root, run, STAGES):
                remove_run(root, run)
        registry.remove_files(config.registry, config.tracking_uri, version)
        with writing(engine) as connection:
            queries.forget_version(connection, version)


def _targets(erasures: Sequence[Erasure]) -> Targets:
    ages = [(each.older_than, each.erasure_id) for each in erasures if each.older_than]
    older_than, of_age = max(ages, default=(None, ""))
    return Targets(
        of_user={user_key: each.erasure_id for each in erasures for user_key in each.marks},
        of_tip={tip_id: each.erasure_id for each in erasures for tip_id in each.tip_ids},
        older_than=older_than,
        of_age=of_age,
    )


def _is_older(config: Config, run: Path, moment: datetime) -> bool:
    """Whether a run was started before a moment, and answers nobody."""
    started = datetime.strptime(run.name[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC)
    with deployment.database(config) as engine:
        return started < moment and run.name not in _live_runs(engine)


def _live_runs(engine: sa.Engine) -> set[str]:
    """The runs whose models answer, or are on trial."""
    with reading(engine) as connection:
        rollout = queries.current_rollout(connection)
        models = queries.all_model_versions(connection)
    numbers = {rollout.champion, rollout.challenger} if rollout else set()
    return {model.run_id for model in models if model.version in numbers}


def _note_of(erasure: Erasure, run: Path) -> Note:
    return {
        "erasure": erasure.erasure_id,
        "at": erasure.asked_at.isoformat(timespec="seconds"),
        "rows": erasure.runs[run.name].rows,
    }


def _card_line(note: Note) -> str:
    return (
        f"Asked for on {note['at'][:10]}: {note['rows']:,} rows were taken out (erasure "
        f"{note['erasure']}). Counts, fingerprint and picture are those of before."
    )


def erasures_of(engine: sa.Engine, ids: Sequence[str]) -> list[Erasure]:
    """These erasures as the journal has them now."""
    with reading(engine) as connection:
        return [each for each in requests.all_erasures(connection) if each.erasure_id in ids]
