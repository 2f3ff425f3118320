"""Every requested erasure is finished, step by step; after a kill the next call continues.

The journal holds what is left to do, so nothing is kept here.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial

import sqlalchemy as sa

from reactune import deployment
from reactune.config.settings import Config
from reactune.erasure import requests
from reactune.erasure.requests import Erasure, erasures_of
from reactune.erasure.runs import erase_from_runs
from reactune.privacy.hashing import HashingKeys, load_hashing_keys
from reactune.release import registry
from reactune.runs.folders import all_runs
from reactune.runs.locks import lease, lock
from reactune.runs.remote import RunRoot, pull, run_root
from reactune.runs.summaries import summarise
from reactune.store import queries
from reactune.store.database import compact, reading, writing
from reactune.store.labels import label_rule
from reactune.store.summaries import recount

Say = Callable[[str], None]
RETRAIN_TAG = "reactune.retrain_by"
PLACE = "erasing"


def request_erasure(
    config: Config,
    hashing_keys: HashingKeys,
    user_ids: Sequence[str],
    *,
    reason: str,
    now: datetime,
    say: Say,
) -> Erasure:
    """Erase users from the database, and record that they are to be erased elsewhere."""
    with deployment.database(config) as engine:
        erasure = requests.request_erasure(
            engine, hashing_keys, user_ids, actor="hand", reason=reason, now=now
        )
    for key_id in erasure.numbers["keys_not_given"]:
        say(f"unchecked rows hashed with key {key_id}, which is not given; some may be theirs")
    return erasure


def request_expiry(config: Config, *, now: datetime) -> None:
    """Erase what is older than `[privacy] retention_days`, if that is above 0.

    Versions out of use that were trained on rows of an erased user are removed too.
    """
    days = config.privacy.retention_days
    older_than = now - timedelta(days=days) if days else None
    with deployment.database(config) as engine:
        requests.request_expiry(engine, older_than=older_than, actor="hand", now=now)


def finish_open(config: Config, *, say: Say) -> int:
    """As `finish`, with the keys of the environment, at this moment.

    Raises:
        PrivacyError: a key is missing.
        DataError: a run is in use, a file of one cannot be read, or the database is in use.
        ReleaseError: MLflow is away.
    """
    with deployment.database(config) as engine:
        if not _open(engine):
            return 0
    hashing_keys = load_hashing_keys(config.privacy, os.environ)
    return finish(config, hashing_keys, now=datetime.now(UTC), say=say)


def finish(config: Config, hashing_keys: HashingKeys, *, now: datetime, say: Say) -> int:
    """Do the steps that are left of every requested erasure; how many were finished.

    After a kill, a repetition continues. One process at a time does it.

    Raises:
        DataError: a run is in use, a file of one cannot be read, or the database is in use.
        ReleaseError: MLflow is away.
    """
    with deployment.database(config) as engine:
        if not _open(engine):
            return 0
        root = run_root(config)
        with _one_process(root):
            pull(root)
            ids = [each.erasure_id for each in _open(engine)]
            steps: dict[str, Callable[[Sequence[Erasure]], None]] = {
                "runs": partial(erase_from_runs, config, engine, root, hashing_keys),
                "registry": lambda _: _tag_versions(config, engine),
                "targets": partial(_erase_targets, engine),
                "files": lambda _: compact(engine),
            }
            for step, do in steps.items():
                if todo := [each for each in erasures_of(engine, ids) if step not in each.steps]:
                    do(todo)
                    with writing(engine) as connection:
                        requests.record_step(connection, todo, step)
            done = erasures_of(engine, ids)
            with writing(engine) as connection:
                requests.close(connection, done, now=now)
            summarise(engine, root, all_runs(root.folder))
            recount(engine, label_rule(config.labels), now=now)
    for each in done:
        say(f"erased    {line_of(each)}")
    return len(done)


def line_of(erasure: Erasure) -> str:
    """One erasure's result, as one line for the terminal; it names no user."""
    numbers = erasure.numbers
    subject = f"{numbers['people']:,} people" if "people" in numbers else erasure.reason
    parts = [f"{numbers['rows_removed']:,} rows removed"]
    if numbers["rows_blanked"]:
        parts.append(f"{numbers['rows_blanked']:,} of an open rollout kept without ids")
    if erasure.runs:
        parts.append(f"erased from {len(erasure.runs):,} runs")
    return f"{erasure.erasure_id}: {subject}: {', '.join(parts)}"


@contextmanager
def _one_process(root: RunRoot) -> Iterator[None]:
    """Keep other erasures out, here and on other workers."""
    root.folder.mkdir(parents=True, exist_ok=True)
    with lock(root.folder / f".{PLACE}"), lease(root, PLACE):
        yield


def _tag_versions(config: Config, engine: sa.Engine) -> None:
    """Tag every version that is to be replaced with the date, in MLflow."""
    with reading(engine) as connection:
        dates = queries.versions_to_replace(connection)
    if dates:
        tags = {number: {RETRAIN_TAG: f"{date:%Y-%m-%d}"} for number, date in dates.items()}
        registry.tag_versions(config.registry, config.tracking_uri, tags)


def _erase_targets(engine: sa.Engine, erasures: Sequence[Erasure]) -> None:
    with writing(engine) as connection:
        requests.erase_targets(connection, erasures)


def _open(engine: sa.Engine) -> tuple[Erasure, ...]:
    with reading(engine) as connection:
        return requests.open_erasures(connection)
