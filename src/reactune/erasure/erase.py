"""To be forgotten everywhere: what an erasure does once the database is rid of the rows.

Asking for one is `journal.py`'s; it says what is still to be done, so that whoever comes after a
kill goes on. Nothing here remembers anything of its own.
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
from reactune.erasure.requests import Erasure
from reactune.erasure.runs import clear_runs, erasures_of
from reactune.privacy.hashing import HashingKeys, load_hashing_keys
from reactune.release import registry
from reactune.runs.folders import lock
from reactune.runs.locks import lease
from reactune.runs.remote import RunRoot, pull, run_root
from reactune.store import queries
from reactune.store.database import compact, reading, writing

Say = Callable[[str], None]
RETRAIN_TAG = "reactune.retrain_by"
PLACE = "erasing"


def finish_all(config: Config, *, say: Say) -> int:
    """As `finish`, with the keys of the environment and the time of now.

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
    """Do what is left of every erasure that was asked for; how many were finished.

    Killed anywhere, it is called again, and goes on. One process at a time may be at it.

    Raises:
        DataError: a run is in use, a file of one cannot be read, or the database is in use.
        ReleaseError: MLflow is away.
    """
    with deployment.database(config) as engine:
        if not _open(engine):
            return 0
        root = run_root(config)
        with one_at_a_time(root):
            pull(root)
            these = _open(engine)
            work: dict[str, Callable[[Sequence[Erasure]], None]] = {
                "runs": partial(clear_runs, config, engine, root, hashing_keys),
                "registry": partial(_tell_registry, config, engine),
                "targets": partial(_forget_targets, engine),
                "files": lambda _: compact(engine),
            }
            ids = [each.erasure_id for each in these]
            for step, do in work.items():
                if todo := [each for each in erasures_of(engine, ids) if step not in each.steps]:
                    do(todo)
                    with writing(engine) as connection:
                        requests.note_step(connection, todo, step)
            done = erasures_of(engine, ids)
            with writing(engine) as connection:
                requests.close(connection, done, now=now)
    for each in done:
        say(f"erased    {line_of(each)}")
    return len(done)


def ask_for_people(
    config: Config,
    hashing_keys: HashingKeys,
    user_ids: Sequence[str],
    *,
    reason: str,
    now: datetime,
    say: Say,
) -> None:
    """Forget people in the database, and write down that they are to be forgotten elsewhere."""
    with deployment.database(config) as engine:
        asked = requests.ask_for_people(
            engine, hashing_keys, user_ids, actor="hand", reason=reason, now=now
        )
    for key_id in asked.numbers["keys_not_given"]:
        say(f"unseen    rows hashed with key {key_id}, which is not given; some may be theirs")


def ask_for_expired(config: Config, *, now: datetime) -> None:
    """Forget what is older than `[privacy] retention_days`, if that is above 0.

    Versions that learned from somebody who was erased, and that answer nobody any more, go too.
    """
    days = config.privacy.retention_days
    older_than = now - timedelta(days=days) if days else None
    with deployment.database(config) as engine:
        requests.ask_for_expired(engine, older_than=older_than, actor="hand", now=now)


def line_of(erasure: Erasure) -> str:
    """What one erasure came to, for the person at the terminal; it names nobody."""
    numbers = erasure.numbers
    whose = f"{numbers['people']:,} people" if "people" in numbers else erasure.reason
    parts = [f"{numbers['rows_removed']:,} rows removed"]
    if numbers["rows_blanked"]:
        parts.append(f"{numbers['rows_blanked']:,} of a running trial left without a name")
    if erasure.runs:
        parts.append(f"taken out of {len(erasure.runs):,} runs")
    return f"{erasure.erasure_id}: {whose}: {', '.join(parts)}"


@contextmanager
def one_at_a_time(root: RunRoot) -> Iterator[None]:
    """Keep other erasures out, here and on other workers."""
    root.folder.mkdir(parents=True, exist_ok=True)
    with lock(root.folder / f".{PLACE}"), lease(root, PLACE):
        yield


def _tell_registry(config: Config, engine: sa.Engine, _: Sequence[Erasure]) -> None:
    """Every version that is to be replaced says so in MLflow, with the date."""
    with reading(engine) as connection:
        dates = queries.versions_to_replace(connection)
    if dates:
        tags = {number: {RETRAIN_TAG: f"{date:%Y-%m-%d}"} for number, date in dates.items()}
        registry.tag_versions(config.registry, config.tracking_uri, tags)


def _forget_targets(engine: sa.Engine, erasures: Sequence[Erasure]) -> None:
    with writing(engine) as connection:
        requests.forget_targets(connection, erasures)


def _open(engine: sa.Engine) -> tuple[Erasure, ...]:
    with reading(engine) as connection:
        return requests.open_erasures(connection)
