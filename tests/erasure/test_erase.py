"""To be forgotten in the database and in runs: what goes, what stays, and what is lines of it."""

import io
import json
from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from people_fixtures import (
    ANNA,
    KEY,
    NOW,
    OTHERS,
    RING,
    RUN,
    USERS,
    install,
    populate,
    rows_of,
    take_in,
    write_run,
)
from reactune import deployment, tracking
from reactune.canary.outcomes import read_outcomes
from reactune.canary.routing import unit_key
from reactune.cli import main
from reactune.config.sections import CanaryConfig, LabelConfig
from reactune.data.dataset.exports import read_examples
from reactune.data.ingest import ERASED
from reactune.erasure import requests
from reactune.erasure.erase import finish, request_erasure, request_expiry
from reactune.erasure.verify import verify
from reactune.errors import CanaryError, DataError
from reactune.privacy.hashing import hashed_ids
from reactune.records import Reason
from reactune.runs.folders import all_runs, unfinished_run
from reactune.runs.locks import hold_stages
from reactune.runs.manifest import ending, read_manifest
from reactune.runs.remote import LOCAL, RunRoot, pull
from reactune.status import erasure_lines, key_lines
from reactune.store import queries
from reactune.store.database import create_store, reading, writing
from reactune.store.queries import upsert_scores
from reactune.store.schema import erasures, tip_scores
from serving_fixtures import register, set_challenger, set_champion, version

DAY = timedelta(days=1)


def rows_for(*users):
    return [row for user in users for row in rows_of(user)]


def erase(config, *users, now=NOW):
    lines = []
    request_erasure(config, RING, users, reason="asked", now=now, say=lines.append)
    finish(config, RING, now=now, say=lines.append)
    return lines


def traces(config, *users):
    report = verify(config, RING, users)
    assert report.unchecked == []
    return report.traces


@pytest.fixture
def config(tmp_path):
    config = install(tmp_path)
    populate(config)
    return config


@pytest.fixture
def run(config):
    (run,) = populate(config, runs={RUN: "deploy"})
    return run


def engine_of(config):
    return create_store(config.store_url)


def exposures(user, arms, *, first=0):
    name = hashed_ids(RING, user)[0]
    for number, arm in enumerate(arms, first):
        at = NOW + timedelta(minutes=number)
        yield {
            "tip_id": f"{user}-{number}",
            "user_key": name.user_key,
            "key_id": name.key_id,
            "kind": "focus",
            "source": "llm",
            "context_json": json.dumps({"v": 1, "context": {"free_text": f"of {user}"}}),
            "tip_content": f"A tip for {user}",
            "arm": arm,
            "rollout_id": "r",
            "unit_key": unit_key("user_day", tip_id="", user_key=name.user_key, at=at),
            "propensity": 0.5,
            "sampling_json": '{"seed":7}',
            "choice_json": json.dumps({"candidates": [{"text": f"Another tip for {user}"}]}),
            "choice_chance": 0.4,
            "created_at": at,
            "shown_at": at if number % 3 else None,
            "reaction": "done" if number % 2 else "dismiss",
            "dwell_ms": 20_000 if number % 2 else 900,
            "reacted_at": at,
        }


def outcomes_of(engine, rollout_id):
    with reading(engine) as connection:
        return read_outcomes(
            connection, rollout_id, labels=LabelConfig(), settings=CanaryConfig(), now=NOW + DAY
        )


def test_an_open_rollout_counts_the_exposures_of_erased_users(engine):
    set_champion(engine)
    trial = set_challenger(engine)
    users = {ANNA: ("challenger",) * 7, "ben": ("champion",) * 8, "eve": ("challenger",) * 5}
    rows = [
        {**row, "rollout_id": trial.rollout_id}
        for first, (user, arms) in enumerate(users.items())
        for row in exposures(user, arms, first=20 * first)
    ]
    old = {**rows[0], "tip_id": "of another trial", "rollout_id": "ended"}
    with writing(engine) as connection:
        upsert_scores(connection, [*rows, old])
    before = outcomes_of(engine, trial.rollout_id)
    asked = requests.request_erasure(
        engine, RING, [ANNA], actor="hand", reason="asked", now=NOW + DAY
    )
    after = outcomes_of(engine, trial.rollout_id)
    for name in ("challenger", "share", "tips", "positives", "quick_dismissals", "both_arms"):
        assert np.array_equal(getattr(before, name), getattr(after, name)), name
    assert after.kinds.keys() == before.kinds.keys()
    assert (asked.numbers["rows_blanked"], asked.numbers["rows_removed"]) == (4, 4)
    with reading(engine) as connection:
        blank = connection.execute(sa.select(tip_scores).where(tip_scores.c.key_id == ""))
        left = str(blank.mappings().all())
    assert not any(name in left for name in (ANNA, hashed_ids(RING, ANNA)[0].user_key, "seed"))


def test_blanked_rows_of_a_rollout_are_removed_when_it_ends(tmp_path):
    config = install(tmp_path)
    engine = engine_of(config)
    set_champion(engine)
    trial = set_challenger(engine)
    rows = [{**row, "rollout_id": trial.rollout_id} for row in exposures(ANNA, ("champion",) * 4)]
    with writing(engine) as connection:
        upsert_scores(connection, rows)
    requests.request_erasure(engine, RING, [ANNA], actor="hand", reason="asked", now=NOW + DAY)
    count = sa.select(sa.func.count()).select_from(tip_scores)
    with reading(engine) as connection:
        assert connection.scalar(count) == 2
    from reactune.canary import rollout

    rollout.roll_back(engine, trial, Reason("hand", "", {}, NOW + 2 * DAY))
    with reading(engine) as connection:
        assert connection.scalar(count) == 0
    engine.dispose()


def test_erased_rows_do_not_come_back_by_a_later_ingest(config):
    erase(config, ANNA)
    counts = take_in(config, rows_for(ANNA, "new@example.org"))
    assert counts.refused == {ERASED: 6}
    assert (counts.came_in, counts.went_out) == (12, 6)
    assert traces(config, ANNA) == []


def test_a_run_loses_the_rows_and_says_so(config, run):
    before = {
        stage: read_manifest(run / stage) for stage in ("extract", "dataset", "reward", "train")
    }
    card = (run / "dataset" / "README.md").read_text()
    lines = erase(config, ANNA)
    assert "6 rows removed, erased from 1 runs" in lines[0]
    assert traces(config, ANNA) == []
    labelled = pq.read_table(run / "extract" / "labelled.parquet")
    assert labelled.num_rows == 6 * len(OTHERS)
    refused = pq.read_table(run / "extract" / "refused.parquet").column("user_key").to_pylist()
    assert len(refused) == len(OTHERS)
    features = pq.read_table(run / "reward" / "features.parquet").column("tip_id").to_pylist()
    assert sorted(features) == [each.tip_id for each in read_examples(run / "dataset")["train"]]
    texts = (run / "dataset" / "kto.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in texts]
    train = read_examples(run / "dataset")["train"]
    assert sorted(line["completion"] for line in lines) == sorted(each.tip for each in train)
    for stage, was in before.items():
        now = read_manifest(run / stage)
        assert now.counts == was.counts
        (note,) = now.erased
        changed = {**was.inputs, **was.outputs}.items() - {**now.inputs, **now.outputs}.items()
        assert note["digests_before"] == dict(changed) != {}
        assert (note["rows"], note["at"]) == (7, "2026-06-01T08:00:00+00:00")
    now = (run / "dataset" / "README.md").read_text()
    assert now.startswith(card.rstrip())
    assert f"2026-06-01: 7 rows (erasure {note['erasure']})" in now
    assert not (run / "train" / "sft").exists()
    assert (run / "train" / "adapter").exists()


def test_a_run_that_never_held_the_user_is_unchanged(config):
    (run,) = populate(config, runs={RUN: "deploy"})
    erase(config, ANNA)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    erase(config, "nobody@example.org")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_an_unfinished_run_that_held_the_person_ends_and_the_next_one_begins(config):
    (run,) = populate(config, runs={RUN: "train"})
    assert unfinished_run(config.run_root) == run
    erase(config, ANNA)
    assert ending(run).summary.startswith("refused: it held what was erased since")
    assert unfinished_run(config.run_root) is None
    assert traces(config, ANNA) == []


def test_a_stage_in_use_is_not_touched_and_the_erasure_goes_on_later(config):
    (run,) = populate(config, runs={RUN: "dataset"})
    with (
        hold_stages(LOCAL, run, ["train"]),
        pytest.raises(DataError, match=r"train is in use by process"),
    ):
        erase(config, ANNA)
    assert erasure_lines(config, now=NOW) == [
        "erasures  1 unfinished; `reactune erase` finishes them"
    ]
    lines = []
    assert finish(config, RING, now=NOW, say=lines.append) == 1
    assert erasure_lines(config, now=NOW) == []
    assert traces(config, ANNA) == []
    assert finish(config, RING, now=NOW, say=lines.append) == 0


def test_two_users_are_erased_at_once_each_with_a_record(config, run):
    for user in (ANNA, OTHERS[0]):
        request_erasure(config, RING, [user], reason="asked", now=NOW, say=print)
    finish(config, RING, now=NOW, say=print)
    assert traces(config, ANNA, OTHERS[0]) == []
    assert [note["rows"] for note in read_manifest(run / "extract").erased] == [7, 7]


def test_the_journal_names_no_user_once_an_erasure_is_finished(config, run):
    erase(config, ANNA)
    engine = engine_of(config)
    with reading(engine) as connection:
        (row,) = connection.execute(sa.select(erasures)).mappings()
    engine.dispose()
    assert row["targets_json"] == "{}"
    assert json.loads(row["steps_json"]) == list(requests.STEPS)
    assert (row["finished_at"], row["reason"]) == (NOW, "asked")


def test_other_workers_drop_their_copies_of_what_was_erased(tmp_path):
    url = f"file://{tmp_path / 'shared'}"
    config = install(tmp_path / "one", run={"root": url})
    (run,) = populate(config, runs={RUN: "deploy"})
    other = RunRoot(tmp_path / "other", url)
    pull(other)
    copy = other.folder / run.name / "dataset" / "kto.jsonl"
    copy.write_bytes((tmp_path / "shared" / RUN / "dataset" / "kto.jsonl").read_bytes())
    left = other.folder / run.name / "train" / "sft" / "rows.parquet"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"tokens")
    pull(other)
    assert copy.exists()
    erase(config, ANNA)
    pull(other)
    assert not copy.exists()
    assert not left.exists()
    assert (copy.parent / "manifest.json").exists()
    pull(other)
    assert traces(config, ANNA) == []


def test_a_run_that_is_removed_at_the_url_goes_on_every_worker(tmp_path):
    url = f"file://{tmp_path / 'shared'}"
    config = install(tmp_path / "one", run={"root": url}, privacy={"retention_days": 30})
    (run,) = populate(config, runs={RUN: "dataset"})
    other = RunRoot(tmp_path / "other", url)
    pull(other)
    (other.folder / run.name / "dataset" / "kto.jsonl").write_text("copy")
    request_expiry(config, now=NOW)
    finish(config, RING, now=NOW, say=print)
    assert all_runs(config.run_root) == []
    pull(other)
    assert not (other.folder / run.name).exists()


def test_expired_rows_are_erased_from_database_and_runs(tmp_path):
    config = install(tmp_path, privacy={"retention_days": 90})
    young = [
        {**row, "tip_id": f"young-{row['tip_id']}", "created_at": row["shown_at"]}
        for row in rows_for(*USERS)
        for row in [{**row, "shown_at": (NOW - DAY).isoformat()}]
    ]
    rows = [*rows_for(*USERS), *young]
    (old_run,) = populate(config, runs={RUN: "deploy"})
    take_in(config, young)
    new_run = write_run(config, rows, run_id="20260531-080000-0000")
    request_expiry(config, now=NOW)
    lines = []
    finish(config, RING, now=NOW, say=lines.append)
    assert f"older than {NOW - 90 * DAY:%Y-%m-%d}: 60 rows removed" in lines[0]
    assert all_runs(config.run_root) == [new_run]
    assert not old_run.exists()
    kept = pq.read_table(new_run / "extract" / "labelled.parquet")["tip_id"].to_pylist()
    assert sorted(kept) == sorted(row["tip_id"] for row in young)
    # No user was erased, so no model must be replaced.
    assert deployment.to_replace(config) == {}


def test_a_run_whose_model_answers_stays_however_old_but_without_old_rows(tmp_path):
    config = install(tmp_path, privacy={"retention_days": 30})
    (run,) = populate(config, runs={RUN: "deploy"})
    engine = engine_of(config)
    set_champion(engine, version(1).__class__(**{**vars(version(1)), "run_id": run.name}))
    engine.dispose()
    request_expiry(config, now=NOW)
    finish(config, RING, now=NOW, say=print)
    assert pq.read_table(run / "dataset" / "examples.parquet").num_rows == 0
    assert (run / "train" / "adapter").exists()


def test_without_retention_days_nothing_expires(config, run):
    request_expiry(config, now=NOW)
    finish(config, RING, now=NOW, say=print)
    assert all_runs(config.run_root) == [run]
    assert traces(config, "nobody@example.org") == []


def test_rows_whose_key_is_not_given_are_named_by_status_and_verify(config):
    engine = engine_of(config)
    with writing(engine) as connection:
        connection.execute(tip_scores.update().values(key_id="0ld0ld00"))
    engine.dispose()
    (line,) = key_lines(config, {"REACTUNE_KEY": "k" * 32})
    assert line.startswith("keys      60 rows hashed with key 0ld0ld00, which is not given")
    report = verify(config, RING, [ANNA])
    assert report.unchecked[0].startswith("60 rows hashed with key 0ld0ld00")


def test_a_version_to_replace_is_shown_with_its_date_and_forces_the_next_run(config, run):
    engine = engine_of(config)
    model = version(1)
    set_champion(engine, model)
    register(engine, version(2))
    with writing(engine) as connection:
        queries.schedule_replacement(connection, 1, NOW + 30 * DAY)
        queries.schedule_replacement(connection, 1, NOW + 20 * DAY)
        queries.schedule_replacement(connection, 1, NOW + 40 * DAY)
        queries.schedule_replacement(connection, 2, NOW)
    engine.dispose()
    champion, unused = erasure_lines(config, now=NOW)
    assert champion == (
        "retrain   version 1 was trained on data of an erased user: a new champion is due by "
        "2026-06-21; `reactune run` does not wait for new examples"
    )
    assert "version 2" in unused
    assert "erase --expired` removes it" in unused
    late, _ = erasure_lines(config, now=NOW + 21 * DAY)
    assert "overdue since 2026-06-21" in late
    later = all_runs(config.run_root)[-1].with_name("20260601-080000-0000")
    assert tracking.last_trained(config, later) is None
    with pytest.raises(CanaryError, match="version 2 was trained on data of an erased user"):
        deployment.open_rollout(config, 2, now=NOW)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--user", ANNA),
        ("--reason", "asked"),
        ("--user", ANNA, "--reason", f"{ANNA} asked"),
        ("--expired", "--user", ANNA, "--reason", "asked"),
        ("--verify",),
        ("--verify", "--user", ANNA, "--expired"),
        ("--also", ".", "--user", ANNA, "--reason", "asked"),
    ],
)
def test_contradictory_options_of_erase_change_nothing(config, call, arguments):
    assert call("erase", *arguments).code == 2
    with deployment.database(config) as engine, reading(engine) as connection:
        assert requests.all_erasures(connection) == ()


def test_the_commands_erase_verify_and_record_consent(config, run, call, monkeypatch):
    assert call("erase", "--verify", "--user", ANNA).code == 3
    before = call("erase", "--verify", "--user", ANNA, "--json")
    assert (before.code, json.loads(before.out)["traces"] != []) == (3, True)
    asked = call("erase", "--user", ANNA, "--user", OTHERS[0], "--reason", "ticket 4711")
    assert asked.code == 0
    assert "2 people: 12 rows removed, erased from 1 runs" in asked.out
    verified = call("erase", "--verify", "--user", ANNA)
    assert (verified.code, verified.out.splitlines()[-1]) == (0, "found     nothing")
    after = call("erase", "--verify", "--user", ANNA, "--json")
    facts = json.loads(after.out)
    assert (after.code, facts["traces"], facts["unchecked"]) == (0, [], [])
    assert facts["searched"]
    assert call("erase").out == "nothing is waiting to be erased\n"
    monkeypatch.setattr(
        "sys.stdin", io.TextIOWrapper(io.BytesIO(f"{OTHERS[1]}\n{OTHERS[2]}\n".encode()))
    )
    assert call("consent", "refuse", "--user", "-").out == "refuse training: 2 users\n"
    assert not deployment.user_statuses(config, RING).of_id(OTHERS[2]).training_allowed
    assert call("consent", "allow", "--user", OTHERS[2]).code == 0
    assert deployment.user_statuses(config, RING).of_id(OTHERS[2]).training_allowed
    lines = [before.out, asked.out, verified.out, after.out]
    assert not any(name in text for name in (ANNA, *OTHERS) for text in lines)


@pytest.fixture
def call(config, capsys, monkeypatch):
    """Runs a command in the folder of the installation."""
    monkeypatch.chdir(config.folder)
    monkeypatch.setenv("REACTUNE_KEY", KEY.secret.decode())

    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(["--set", f"model.cache_dir={config.model.cache_dir}", *arguments])
        out, err = capsys.readouterr()
        return SimpleNamespace(code=ended.value.code or 0, out=out, err=err)

    return call
