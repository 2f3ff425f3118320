"""People whose rows are in runs of every kind: built by our own stages, but without a model.

Where a stage would compute for long, its files are written with other bytes; what matters here
is where somebody's rows lie, and what manifests say.
"""

import atexit
import functools
import json
import shutil
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa

from loop_fixtures import read_rows, write_toml
from reactune.config.settings import load, sqlite_file
from reactune.data.dataset import build
from reactune.data.dataset.exports import read_examples
from reactune.data.labelled import (
    LABELLED,
    REFUSED,
    clean_schema,
    read_batches,
    refused_schema,
    workspace,
    write_batches,
    write_refused,
)
from reactune.privacy.hashing import HashingKey, HashingKeys, hashed_ids, user_key
from reactune.records import STAGES
from reactune.reward.cache import FEATURES, write_features
from reactune.runs.folders import StageResult, new_run, run_stage
from reactune.runs.remote import pull, push, run_root
from reactune.service.events import TipCreated, write_events
from reactune.store.database import create_store
from serving_fixtures import exposure_of

KEY, OLD_KEY = (
    HashingKey(b"the key of today, 32 characters.."),
    HashingKey(b"the key of last year, 32 chars..."),
)
RING = HashingKeys(KEY)
START = datetime(2026, 3, 2, 8, tzinfo=UTC)
NOW = datetime(2026, 6, 1, 8, tzinfo=UTC)
ANNA = "anna.canary@example.org"
OTHERS = tuple(f"user-{number}@example.org" for number in range(9))
USERS = (ANNA, *OTHERS)
RUN = "20260302-080000-0000"
SETTINGS = {
    "dataset": {
        "min_positives": 2,
        "min_negatives": 2,
        "min_new": 5,
        "max_per_user": 50,
        "split": [0.6, 0.2, 0.2],
    },
    "registry": {"tracking_uri": "sqlite:///mlflow.db"},
}


def install(folder, **changes):
    """Settings and an empty store in a folder; the settings. `run={"root": url}` changes one."""
    folder.mkdir(parents=True, exist_ok=True)
    cache = {"model": {"cache_dir": str(folder / "cache")}}
    config = load(write_toml(folder, SETTINGS, cache, changes))
    create_store(config.store_url).dispose()
    return config


def rows_of(user, count=6, *, first=0):
    """Rows to ingest, half of them liked; every text is of this user alone."""
    name = user.partition("@")[0]
    for number in range(first, first + count):
        at = START + timedelta(hours=number, seconds=len(user))
        is_liked = number % 2 == 0
        yield {
            "tip_id": f"tip-{name}-{number}",
            "user_id": user,
            "kind": "focus",
            "context_json": {
                "free_text": f"{name} wants to finish chapter {number} of a long book"
            },
            "tip_content": f"Dear {name}, read page {number} aloud to a friend before dinner.",
            "created_at": at.isoformat(),
            "shown_at": at.isoformat(),
            "reaction": "done" if is_liked else "dismiss",
            "dwell_ms": 30_000 if is_liked else 1_000,
        }


def take_in(config, rows, *, key=KEY, old_keys=()):
    """`read_rows` under the key of today, or of another day."""
    return read_rows(config, rows, key=key, old_keys=old_keys)


def populate(config, *, runs=None):
    """Put all users into the store, and into runs: `runs` maps an id to the last stage done.

    They are written once and copied. The folders of the runs are returned.
    """
    saved = _populated()
    if config.store_url.startswith("sqlite"):
        shutil.copyfile(saved / "reactune.db", sqlite_file(config.store_url))
    root = run_root(config)
    kept = Path(root.url.removeprefix("file://")) if root.url else root.folder
    for run_id, until in (runs or {}).items():
        shutil.copytree(saved / "runs" / RUN, kept / run_id)
        for stage in STAGES[STAGES.index(until) + 1 :]:
            shutil.rmtree(kept / run_id / stage)
    pull(root)
    return [root.folder / run_id for run_id in runs or {}]


@functools.cache
def _populated():
    folder = Path(tempfile.mkdtemp(prefix="reactune-people-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    config = install(folder)
    rows = [row for user in USERS for row in rows_of(user)]
    take_in(config, rows)
    write_run(config, rows)
    return folder


def write_tip(connection, ring, user, row):
    """Store a tip as the service does; whether it was."""
    created = TipCreated(exposure_of(**row), hashed_ids(ring, user))
    (status,) = write_events(connection, [created], keys=ring.all)
    return status


def write_run(config, rows, *, run_id=RUN, until="deploy", key=KEY):
    """A run on these rows, done up to a stage; its folder."""
    root = run_root(config)
    run = new_run(config.run_root, {}, run_id=run_id)
    push(root, run, ["config.json"])
    labelled = pa.RecordBatch.from_pylist([_cleaned(row, key) for row in rows], clean_schema())
    for stage in STAGES[: STAGES.index(until) + 1]:
        work = {"extract": lambda folder: _extract(folder, labelled), "train": _train}.get(stage)
        if stage == "dataset":
            work = lambda folder: _dataset(config, run, folder)  # noqa: E731
        if stage == "reward":
            work = lambda folder: _reward(run, folder)  # noqa: E731
        inputs = {
            "dataset": {"extract/labelled.parquet": run / "extract/labelled.parquet"},
            "reward": {"dataset/examples.parquet": run / "dataset/examples.parquet"},
            "train": {"dataset/examples.parquet": run / "dataset/examples.parquet"},
        }.get(stage, {})
        reads = [name.partition("/")[0] for name in inputs]
        work = work or _nothing
        run_stage(run, stage, work, inputs=inputs, settings={}, reads=reads, root=root)
        pull(root)
    return run


def _cleaned(row, key):
    context = json.dumps({"v": 1, "context": row["context_json"]})
    known = {
        **row,
        "user_key": user_key(key, row["user_id"]),
        "tip": row["tip_content"],
        "context_json": context,
        "instruction": "Write a tip.",
        "input": row["context_json"]["free_text"],
        "prompt": f"Write a tip. {row['context_json']['free_text']}",
        "source": "llm",
        "created_at": datetime.fromisoformat(row["created_at"]),
        "label": row["reaction"] == "done",
    }
    return {name: known.get(name) for name in clean_schema().names}


def _extract(folder, labelled):
    write_batches([labelled], folder / LABELLED)
    people = sorted(set(labelled.column("user_key").to_pylist()))
    rows = [
        {"tip_id": f"refused-{each}", "user_key": each, "reason": "incomplete", "created_at": START}
        for each in people
    ]
    with workspace(folder, memory_gb=1) as (connection, _):
        batch = pa.RecordBatch.from_pylist(rows, schema=refused_schema())
        write_refused(connection, ((batch,),), folder / REFUSED)
    return StageResult("extracted", (LABELLED, REFUSED))


def _dataset(config, run, folder):
    batches = read_batches(run / "extract/labelled.parquet")
    result = build.build(batches, config.dataset, folder=folder)
    assert result.waiting is None, result.waiting
    return StageResult("built", result.files, counts={"fingerprint": result.fingerprint})


def _reward(run, folder):
    """What the stage leaves that has rows of users: features, and chunks only if it was killed."""
    examples = read_examples(run / "dataset")["train"]
    digests = [each.tip_id for each in examples]
    values = np.ones((len(examples), 4), np.float16)
    write_features(folder / FEATURES, examples, digests, values)
    return StageResult("read", (FEATURES,))


def _train(folder):
    """What a trainer leaves: rows as token ids, a checkpoint, an adapter."""
    trainer = folder / "sft"
    (trainer / "checkpoints" / "checkpoint-25").mkdir(parents=True)
    (trainer / "checkpoints" / "checkpoint-25" / "optimizer.pt").write_bytes(bytes(1_000))
    (trainer / "job.json").write_text("{}")
    (trainer / "trainer.log").write_text("trained\n")
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"weights" * 100)
    return StageResult("trained", ("adapter/adapter_model.safetensors",))


def _nothing(folder):
    return StageResult("done")
