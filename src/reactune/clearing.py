"""What is to be forgotten leaves every run: which files, in what order, and what is written down.

What the files of one run hold is `data/erasure.py`'s; what else an erasure does, `erasing.py`'s.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import sqlalchemy as sa

from reactune import journal, live, store
from reactune.config import Config
from reactune.data.erasure import CHOSEN, EXTRACTED, TABLES, Row, Targets, rows_to_go, take_out
from reactune.database import reading, writing
from reactune.journal import Erasure, Held
from reactune.keyring import Keyring
from reactune.records import STAGES
from reactune.release import registry
from reactune.removal import Left, add_prints
from reactune.run_files import (
    DATA_STAGES,
    Note,
    amend,
    bring,
    end_refused,
    is_ended,
    keep_out_others,
    outputs_of,
    remove_files,
    remove_run,
    unlike_stated,
    unstated,
)
from reactune.run_root import RunRoot
from reactune.runs import all_runs


def clear_runs(
    config: Config,
    engine: sa.Engine,
    root: RunRoot,
    keyring: Keyring,
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
            _clear_run(config, engine, root, run, targets, keyring, ids)


def _clear_run(
    config: Config,
    engine: sa.Engine,
    root: RunRoot,
    run: Path,
    targets: Targets,
    keyring: Keyring,
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
        _note(config, engine, run, rows, keyring, ids)
        notes = [_note_of(each, run) for each in erasures_of(engine, ids) if run.name in each.runs]
        if is_ended(run):
            bring(root, run, unlike_stated(run, outputs_of(run, DATA_STAGES)))
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
    keyring: Keyring,
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
        add_prints(connection, keyring.current, left)
        models = [m for m in store.all_model_versions(connection) if m.run_id == run.name]
        for erasure_id, count in most.items():
            is_learned = erasure_id in learned
            journal.note_run(connection, erasure_id, run.name, Held(count, learned=is_learned))
            for model in models if is_learned else ():
                retrain_by = erasures[erasure_id].asked_at + days
                journal.replace_version(connection, model.version, retrain_by)


def _remove_retired(config: Config, engine: sa.Engine, root: RunRoot) -> None:
    """Versions that learned from somebody who was erased, and that answer nobody any more, go."""
    used = _live_runs(engine)
    for version in live.to_replace(config):
        model = live.version(config, version)
        if model.run_id in used:
            continue
        run = root.folder / model.run_id
        if run.is_dir():
            with keep_out_others(root, run, STAGES):
                remove_run(root, run)
        registry.remove_files(config.registry, config.tracking_uri, version)
        with writing(engine) as connection:
            journal.forget_version(connection, version)


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
    with live.database(config) as engine:
        return started < moment and run.name not in _live_runs(engine)


def _live_runs(engine: sa.Engine) -> set[str]:
    """The runs whose models answer, or are on trial."""
    with reading(engine) as connection:
        rollout = store.current_rollout(connection)
        models = store.all_model_versions(connection)
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
        return [each for each in journal.all_erasures(connection) if each.erasure_id in ids]
