"""The manifest of a stage: it counts only while it is complete and its outputs are intact."""

import json
from dataclasses import replace

import pytest

from reactune.records import STAGES, sha256_of
from reactune.runs.manifest import (
    Manifest,
    ending,
    generator_run,
    is_ended,
    is_file_of_digest,
    manifests,
    read_manifest,
    recorded_manifest,
    recorded_manifests,
    recorded_outputs,
    write_manifest,
)


def written(run, stage="extract", *, outcome="done", **changes):
    """A stage's folder with one output and its manifest; the manifest."""
    folder = run / stage
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "out.txt").write_text(f"of {stage}")
    manifest = Manifest(
        stage=stage,
        outcome=outcome,
        summary="done",
        inputs={"in.txt": "ab" * 32},
        outputs={"out.txt": sha256_of(folder / "out.txt")},
        counts={"rows": 3},
        settings={"train": {"seed": 1}},
        versions={"reactune": "0.1"},
        seconds=1.5,
        finished_at="2026-03-02T08:00:00+00:00",
        **changes,
    )
    write_manifest(folder, manifest)
    return manifest


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    note = {"erasure": "e1", "at": "2026-06-01T08:00:00+00:00", "rows": 7}
    for changes in ({}, {"kept_at": "s3://b/runs/r/extract"}, {"erased": [note]}):
        assert written(tmp_path, **changes) == read_manifest(tmp_path / "extract")


def test_the_keys_of_the_file_are_those_that_earlier_versions_wrote(tmp_path):
    written(tmp_path)
    assert list(json.loads((tmp_path / "extract" / "manifest.json").read_text())) == [
        "stage", "outcome", "summary", "inputs", "outputs", "counts", "settings", "versions",
        "seconds", "finished_at", "kept_at", "erased",
    ]  # fmt: skip


def test_a_manifest_from_before_erasures_and_urls_is_read(tmp_path):
    manifest = written(tmp_path)
    file = tmp_path / "extract" / "manifest.json"
    values = json.loads(file.read_text())
    del values["kept_at"], values["erased"]
    file.write_text(json.dumps(values))
    assert read_manifest(tmp_path / "extract") == manifest


@pytest.mark.parametrize("text", ["", "{", "[]", '{"stage": "extract"}', '{"unknown": 1}', "null"])
def test_an_incomplete_manifest_is_none(tmp_path, text):
    written(tmp_path)
    (tmp_path / "extract" / "manifest.json").write_text(text)
    assert recorded_manifest(tmp_path / "extract") is None
    assert read_manifest(tmp_path / "extract") is None


def test_a_folder_without_a_manifest_has_none(tmp_path):
    assert recorded_manifest(tmp_path) is None
    assert recorded_manifest(tmp_path / "nowhere") is None


@pytest.mark.parametrize("damage", ["change", "remove"])
def test_a_damaged_output_makes_the_manifest_invalid_but_it_stays_on_record(tmp_path, damage):
    manifest = written(tmp_path)
    output = tmp_path / "extract" / "out.txt"
    output.write_text("other") if damage == "change" else output.unlink()
    assert read_manifest(tmp_path / "extract") is None
    assert recorded_manifest(tmp_path / "extract") == manifest
    assert manifests(tmp_path) == {}
    assert recorded_manifests(tmp_path) == {"extract": manifest}


def test_outputs_that_are_kept_at_a_url_need_not_be_here(tmp_path):
    manifest = written(tmp_path, kept_at="s3://b/runs/r/extract")
    (tmp_path / "extract" / "out.txt").unlink()
    assert read_manifest(tmp_path / "extract") == manifest


def test_manifests_are_in_the_order_of_the_stages(tmp_path):
    for stage in ("train", "extract", "dataset"):
        written(tmp_path, stage)
    assert list(manifests(tmp_path)) == ["extract", "dataset", "train"]
    assert list(recorded_manifests(tmp_path)) == ["extract", "dataset", "train"]


def test_outputs_are_named_from_the_folder_of_the_run(tmp_path):
    digests = {stage: written(tmp_path, stage).outputs["out.txt"] for stage in ("extract", "train")}
    assert recorded_outputs(tmp_path, STAGES) == {
        f"{stage}/out.txt": digest for stage, digest in digests.items()
    }
    assert list(recorded_outputs(tmp_path, ["train", "export"])) == ["train/out.txt"]


@pytest.mark.parametrize("outcome", ["waiting", "refused"])
def test_a_run_ends_with_the_first_stage_that_waits_or_refuses(tmp_path, outcome):
    written(tmp_path, "extract")
    assert (ending(tmp_path), is_ended(tmp_path)) == (None, False)
    last = written(tmp_path, "dataset", outcome=outcome)
    assert (ending(tmp_path), is_ended(tmp_path)) == (last, True)


def test_a_run_ends_when_it_is_deployed(tmp_path):
    for stage in STAGES:
        assert not is_ended(tmp_path)
        last = written(tmp_path, stage)
    assert (ending(tmp_path), is_ended(tmp_path)) == (last, True)


def test_a_run_whose_last_outputs_are_damaged_is_ended_on_record_only(tmp_path):
    written(tmp_path, "deploy")
    (tmp_path / "deploy" / "out.txt").write_text("other")
    assert (ending(tmp_path), is_ended(tmp_path)) == (None, True)


def test_a_file_is_compared_with_a_digest(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("a")
    assert is_file_of_digest(file, sha256_of(file))
    assert not is_file_of_digest(file, "ab" * 32)
    assert not is_file_of_digest(tmp_path / "b.txt", sha256_of(file))
    assert not is_file_of_digest(tmp_path, sha256_of(file))


def test_a_manifest_is_replaced_as_a_whole(tmp_path):
    first = written(tmp_path)
    write_manifest(tmp_path / "extract", replace(first, summary="again"))
    assert read_manifest(tmp_path / "extract").summary == "again"
    assert sorted(path.name for path in (tmp_path / "extract").iterdir()) == [
        "manifest.json",
        "out.txt",
    ]


def test_the_generator_of_a_run_is_its_own_unless_its_gate_chose_an_earlier_one(tmp_path):
    run = tmp_path / "later"
    assert generator_run(run) == "later"
    written(run, "evaluate")
    assert generator_run(run) == "later"
    chosen = replace(recorded_manifest(run / "evaluate"), counts={"generator_run": "earlier"})
    write_manifest(run / "evaluate", chosen)
    assert generator_run(run) == "earlier"
