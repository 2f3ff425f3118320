"""Erasure from run folders: which rows, which files, and what the manifests say afterwards."""

import json
from dataclasses import replace
from datetime import timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from people_fixtures import ANNA, KEY, NOW, OTHERS, RING, RUN, install, populate
from reactune import deployment
from reactune.data.dataset.exports import read_examples
from reactune.data.labelled import REFUSED, refused_schema, workspace, write_refused
from reactune.erasure import requests
from reactune.erasure.erase import finish, request_erasure
from reactune.erasure.runs import READ, TABLES, Targets, erase_rows, rows_to_erase
from reactune.errors import DataError
from reactune.privacy.hashing import user_key
from reactune.runs.folders import StageResult, run_stage
from reactune.runs.manifest import read_manifest, recorded_manifests
from reactune.store.database import create_store
from serving_fixtures import register, set_champion, version

DAY = timedelta(days=1)
HASH = user_key(KEY, ANNA)
OF_ANNA = Targets({HASH: "e1"}, {})


@pytest.fixture
def config(tmp_path):
    return install(tmp_path)


@pytest.fixture
def run(config):
    (run,) = populate(config, runs={RUN: "deploy"})
    return run


def files_below(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def users_in(run):
    return {
        key for name in TABLES for key in pq.read_table(run / name).column("user_key").to_pylist()
    }


@pytest.mark.parametrize(
    ("row", "erasure"),
    [
        (("t1", "anna", NOW), "user"),
        (("t9", "ben", NOW), "tip"),
        (("t9", "anna", NOW), "user"),
        (("t1", "ben", NOW - 2 * DAY), "age"),
        (("t1", "ben", NOW - DAY), None),
        (("t1", "ben", None), None),
        (("t1", "anna", None), "user"),
        (("t9", "ben", NOW - 2 * DAY), "tip"),
    ],
)
def test_a_row_is_erased_for_its_user_its_tip_or_its_age_in_this_order(row, erasure):
    targets = Targets({"anna": "user"}, {"t9": "tip"}, older_than=NOW - DAY, of_age="age")
    assert targets.erasure_of(*row) == erasure


def test_without_targets_no_row_is_to_be_erased(run):
    assert list(rows_to_erase(run, Targets({}, {}))) == []


def test_the_rows_of_a_user_are_found_in_every_file_with_users(run):
    rows = list(rows_to_erase(run, OF_ANNA))
    assert {row.user_key for row in rows} == {HASH}
    assert {row.file for row in rows} >= {"extract/labelled.parquet", "extract/refused.parquet"}
    extracted = [row for row in rows if row.file == "extract/labelled.parquet"]
    assert len(extracted) == 6
    assert all(row.tip.startswith("Dear anna.canary") for row in extracted)
    assert not any(row.is_learned for row in extracted)


def test_a_row_is_learned_if_generator_or_reward_read_it(run):
    trained = {
        each.tip_id for each in read_examples(run / "dataset")["train"] if each.user_key == HASH
    }
    read = set(pq.read_table(run / READ[0], columns=["tip_id"])["tip_id"].to_pylist())
    rows = list(rows_to_erase(run, OF_ANNA))
    assert {row.tip_id for row in rows if row.is_learned and row.file not in READ} == trained
    assert {row.tip_id for row in rows if row.is_learned} == trained | (
        read & {row.tip_id for row in rows}
    )


def test_rows_that_expire_are_not_learned(run):
    old = Targets({}, {}, older_than=NOW, of_age="e1")
    rows = list(rows_to_erase(run, old))
    assert rows
    assert not any(row.is_learned for row in rows)


def test_erasing_twice_changes_nothing_more(run):
    erase_rows(run, OF_ANNA, note="erased")
    once = files_below(run)
    erase_rows(run, OF_ANNA, note="erased")
    assert files_below(run) == once
    assert HASH not in users_in(run)
    assert list(rows_to_erase(run, OF_ANNA)) == []


def test_the_note_stands_once_at_the_end_of_the_card(run):
    before = (run / "dataset" / "README.md").read_text()
    for _ in range(2):
        erase_rows(run, OF_ANNA, note="erased")
    assert (run / "dataset" / "README.md").read_text() == f"{before.rstrip()}\n\nerased\n"


def test_rows_of_others_and_the_adapter_stay_as_they_are(run):
    before = {name: pq.read_table(run / name) for name in TABLES}
    adapter = files_below(run / "train" / "adapter")
    erase_rows(run, OF_ANNA, note="")
    for name, table in before.items():
        others = [row for row in table.to_pylist() if row["user_key"] != HASH]
        assert pq.read_table(run / name).to_pylist() == others
        assert pq.read_table(run / name).schema == table.schema
    assert files_below(run / "train" / "adapter") == adapter
    assert not (run / "train" / "sft").exists()


def test_what_a_killed_erasure_left_is_removed_by_the_next(run):
    scratch = run / "dataset" / ".erasing"
    scratch.mkdir()
    (scratch / "examples.parquet").write_bytes(b"half")
    erase_rows(run, OF_ANNA, note="")
    assert not scratch.exists()
    assert HASH not in users_in(run)


def test_a_run_without_data_has_nothing_to_erase(tmp_path):
    assert list(rows_to_erase(tmp_path, OF_ANNA)) == []
    erase_rows(tmp_path, OF_ANNA, note="erased")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_read_is_named_with_what_to_do(run):
    (run / "extract" / "labelled.parquet").write_bytes(b"damaged")
    with pytest.raises(DataError) as caught:
        list(rows_to_erase(run, OF_ANNA))
    message = str(caught.value)
    assert f"{run / 'extract' / 'labelled.parquet'} cannot be read" in message
    assert "ArrowInvalid" in message
    assert "put it back as it was or delete its run folder" in message


@pytest.mark.parametrize("days", [1, 45])
def test_a_version_that_learned_is_to_be_replaced_within_retrain_within_days(tmp_path, days):
    config = install(tmp_path, privacy={"retrain_within_days": days})
    (run,) = populate(config, runs={RUN: "deploy"})
    engine = create_store(config.store_url)
    set_champion(engine, version(1))
    register(engine, replace(version(2), run_id=run.name))
    engine.dispose()
    learned = next(
        each.user_key for each in read_examples(run / "dataset")["train"] if each.user_key
    )
    user = next(each for each in (ANNA, *OTHERS) if user_key(KEY, each) == learned)
    request_erasure(config, RING, [user], reason="asked", now=NOW, say=print)
    finish(config, RING, now=NOW + DAY, say=print)
    assert deployment.to_replace(config) == {2: NOW + days * DAY}


def test_a_version_with_the_generator_of_a_run_that_learned_is_to_be_replaced_too(config, run):
    later = config.run_root / "20260401-080000-0000"
    counts = {"generator_run": run.name}
    run_stage(later, "evaluate", lambda _: StageResult("", counts=counts), inputs={}, settings={})
    engine = create_store(config.store_url)
    set_champion(engine, version(1))
    for number, name in ((2, run.name), (3, later.name), (4, "20260402-080000-0000")):
        register(engine, replace(version(number), run_id=name))
    engine.dispose()
    learned = {each.user_key for each in read_examples(run / "dataset")["train"]}
    user = next(each for each in (ANNA, *OTHERS) if user_key(KEY, each) in learned)
    request_erasure(config, RING, [user], reason="asked", now=NOW, say=print)
    finish(config, RING, now=NOW, say=print)
    assert deployment.to_replace(config).keys() == {2, 3}
    deployment.replace_together(config, 3, 4)
    deployment.replace_together(config, 1, 1)
    assert deployment.to_replace(config).keys() == {2, 3, 4}
    assert len(set(deployment.to_replace(config).values())) == 1


def test_the_journal_states_what_each_run_held(config):
    first, second = populate(config, runs={RUN: "deploy", "20260303-080000-0000": "extract"})
    request_erasure(config, RING, [ANNA], reason="asked", now=NOW, say=print)
    finish(config, RING, now=NOW, say=print)
    with deployment.database(config) as engine:
        ids = [each.erasure_id for each in requests.erasures_of(engine, all_ids(engine))]
        (erasure,) = requests.erasures_of(engine, ids)
    assert {name: match.rows for name, match in erasure.runs.items()} == {
        first.name: 7,
        second.name: 7,
    }
    assert not erasure.runs[second.name].learned


def all_ids(engine):
    with engine.connect() as connection:
        return [each.erasure_id for each in requests.all_erasures(connection)]


def test_manifests_state_the_new_digests_and_each_erasure_that_changed_them(config, run):
    for day, user in enumerate((ANNA, OTHERS[0])):
        at = NOW + day * DAY
        request_erasure(config, RING, [user], reason="asked", now=at, say=print)
        finish(config, RING, now=at, say=print)
    manifest = read_manifest(run / "dataset")
    assert [note["at"][:10] for note in manifest.erased] == ["2026-06-01", "2026-06-02"]
    first, second = (note["digests_before"] for note in manifest.erased)
    assert first.keys() == second.keys()
    assert all(first[name] != second[name] for name in first)
    unchanged = recorded_manifests(run)["export"]
    assert unchanged.erased == []


def test_an_unfinished_run_states_why_it_ended_and_keeps_its_settings(config):
    (run,) = populate(config, runs={RUN: "dataset"})
    settings = recorded_manifests(run)["extract"].settings
    request_erasure(config, RING, [ANNA], reason="asked", now=NOW, say=print)
    finish(config, RING, now=NOW, say=print)
    (refused,) = recorded_manifests(run).values()
    assert refused.outcome == "refused"
    assert "held what was erased since; the next run learns without it" in refused.summary
    assert (refused.inputs, refused.outputs, refused.settings) == ({}, {}, settings)
    assert [note["rows"] for note in refused.erased] == [7]
    left = sorted(path.name for path in run.rglob("*") if path.is_file() and path.name != ".lock")
    assert left == ["config.json", "manifest.json"]


def test_files_that_no_manifest_names_are_removed_from_the_data_stages(config, run):
    (run / "extract" / "half.parquet").write_bytes(b"half")
    (run / "train" / "notes.txt").write_text("kept")
    request_erasure(config, RING, [ANNA], reason="asked", now=NOW, say=print)
    finish(config, RING, now=NOW, say=print)
    assert not (run / "extract" / "half.parquet").exists()
    assert (run / "train" / "notes.txt").read_text() == "kept"


def test_settings_of_a_run_are_never_changed(config, run):
    before = (run / "config.json").read_bytes()
    request_erasure(config, RING, [ANNA], reason="asked", now=NOW, say=print)
    finish(config, RING, now=NOW, say=print)
    assert (run / "config.json").read_bytes() == before
    assert json.loads(before) == {}


def test_refused_rows_are_erased_by_user_by_tip_and_by_age(tmp_path):
    rows = [
        {"tip_id": "a", "user_key": "anna", "reason": "incomplete", "created_at": NOW},
        {"tip_id": "b", "user_key": None, "reason": "incomplete", "created_at": None},
        {"tip_id": "c", "user_key": "ben", "reason": "incomplete", "created_at": NOW - 9 * DAY},
        {"tip_id": "d", "user_key": "ben", "reason": "incomplete", "created_at": None},
    ]
    for stage in ("extract", "dataset"):
        with workspace(tmp_path / stage, memory_gb=1) as (connection, _):
            batch = pa.RecordBatch.from_pylist(rows, schema=refused_schema())
            write_refused(connection, ((batch,),), tmp_path / stage / REFUSED)
    targets = Targets({"anna": "e1"}, {"b": "e2"}, older_than=NOW - DAY, of_age="e3")
    found = {(row.file, row.tip_id, row.erasure_id) for row in rows_to_erase(tmp_path, targets)}
    expected = {("a", "e1"), ("b", "e2"), ("c", "e3")}
    assert found == {(f"{s}/{REFUSED}", *each) for s in ("extract", "dataset") for each in expected}
    erase_rows(tmp_path, targets, note="")
    for stage in ("extract", "dataset"):
        (left,) = pq.read_table(tmp_path / stage / REFUSED).to_pylist()
        assert left["tip_id"] == "d"
