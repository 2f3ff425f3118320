"""Runs at a URL: on a real S3 server and in a folder behind `file://`, with a worker's copies."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from reactune.config.settings import load
from reactune.errors import ConfigError, DataError
from reactune.records import ModelVersion, sha256_of
from reactune.runs.folders import StageResult, all_runs, new_run, run_stage
from reactune.runs.manifest import ending, manifests
from reactune.runs.remote import (
    LOCAL,
    RunRoot,
    as_local,
    as_stored,
    fetch,
    fetch_adapter,
    fetch_release,
    pull,
    push,
    remote_files,
    run_root,
)

RUN = "20260102-030405-0000"


@pytest.fixture(params=["file", "s3"])
def url(request, tmp_path):
    """A place that workers share, but for their disks."""
    if request.param == "s3":
        return request.getfixturevalue("s3_url")
    return (tmp_path / "shared").as_uri()


@pytest.fixture
def workers(url, tmp_path):
    """Makes workers without a disk in common."""
    return lambda name: RunRoot(tmp_path / name, url, stale_seconds=60)


@pytest.fixture
def first(workers):
    """The worker that started the run."""
    root = workers("first")
    push(root, new_run(root.folder, {"a": 1}, run_id=RUN), ["config.json"])
    return root


def stage(root, name, text, *, reads=(), inputs=(), calls=None):
    """Do a stage that writes one text, as one worker."""

    def work(folder):
        if calls is not None:
            calls.append(name)
        (folder / "part").mkdir(exist_ok=True)
        (folder / "part" / "out.txt").write_text(text)
        return StageResult("done", outputs=("part/out.txt",))

    run = root.folder / RUN
    files = {each: run / each for each in inputs}
    return run_stage(run, name, work, inputs=files, settings={}, reads=reads, root=root)


def objects(root):
    """Names of all objects at the URL, from the root."""
    with remote_files(root) as (files, top):
        return sorted(path.removeprefix(f"{top}/") for path in files.find(top))


def overwrite(root, name, content):
    with remote_files(root) as (files, top):
        files.pipe_file(f"{top}/{name}", content)


def test_a_worker_finds_the_runs_and_manifests_of_another(first, workers):
    manifest, _ = stage(first, "extract", "rows")
    second = workers("second")
    pull(second)
    (run,) = all_runs(second.folder)
    found = manifests(run)["extract"]
    assert found.kept_at == f"{second.url}/{RUN}/extract"
    assert replace(found, kept_at="") == manifest
    assert ending(run) is None
    assert not (run / "extract" / "part").exists()


def test_a_stage_that_another_worker_did_is_not_done_again_nor_fetched(first, workers):
    stage(first, "extract", "rows")
    calls = []
    second = workers("second")
    assert not stage(second, "extract", "rows", calls=calls)[1]
    assert calls == []
    assert not (second.folder / RUN / "extract" / "part").exists()


def test_a_stage_gets_its_inputs_and_leaves_outputs_before_the_manifest(first, workers):
    stage(first, "extract", "rows")
    second = workers("second")
    inputs = ("extract/part/out.txt",)
    manifest, is_new = stage(second, "dataset", "set", reads=["extract"], inputs=inputs)
    got = second.folder / RUN / "extract" / "part" / "out.txt"
    assert is_new
    assert got.read_text() == "rows"
    assert manifest.inputs == {inputs[0]: sha256_of(got)}
    folders = ("dataset", "extract")
    ends = ("manifest.json", "part/out.txt")
    wanted = [f"{RUN}/{folder}/{end}" for folder in folders for end in ends]
    assert objects(second) == sorted([f"{RUN}/config.json", *wanted])


def test_what_is_here_is_not_fetched_again(first, workers):
    stage(first, "extract", "rows")
    second = workers("second")
    pull(second)
    fetch(second, RUN, "extract")
    with remote_files(first) as (files, top):
        files.rm_file(f"{top}/{RUN}/extract/part/out.txt")
    fetch(second, RUN, "extract")
    third = workers("third")
    pull(third)
    with pytest.raises(DataError, match=r"extract/part/out\.txt .* no object found"):
        fetch(third, RUN, "extract")


@pytest.mark.parametrize("content", [b"ro", b"", b"rowz"])
def test_the_error_of_a_damaged_object_states_both_digests(first, workers, content):
    expected = stage(first, "extract", "rows")[0].outputs["part/out.txt"]
    overwrite(first, f"{RUN}/extract/part/out.txt", content)
    second = workers("second")
    with pytest.raises(DataError, match="is not what its stage wrote") as caught:
        stage(second, "dataset", "set", reads=["extract"])
    message = str(caught.value)
    altered = hashlib.sha256(content).hexdigest()
    assert f"{first.url}/{RUN}/extract/part/out.txt" in message
    assert f"SHA-256 {expected} expected, {altered} found" in message
    assert f"delete {RUN}/extract/manifest.json there, and do stage extract again" in message
    assert list((second.folder / RUN / "extract" / "part").iterdir()) == []
    assert f"{RUN}/dataset/manifest.json" not in objects(second)


def test_a_stage_is_done_again_once_its_manifest_is_deleted_as_the_error_advises(first, workers):
    stage(first, "extract", "rows")
    overwrite(first, f"{RUN}/extract/part/out.txt", b"ro")
    with remote_files(first) as (files, top):
        files.rm_file(f"{top}/{RUN}/extract/manifest.json")
    calls = []
    assert stage(first, "extract", "rows", calls=calls)[1]
    assert stage(workers("second"), "dataset", "set", reads=["extract"], calls=calls)[1]
    assert calls == ["extract", "dataset"]


def test_a_half_written_manifest_counts_as_none(first, workers):
    stage(first, "extract", "rows")
    overwrite(first, f"{RUN}/extract/manifest.json", b'{"stage": "extr')
    second = workers("second")
    pull(second)
    assert manifests(second.folder / RUN) == {}


@pytest.mark.parametrize("name", [b"../../../out.txt", b"/nowhere/out.txt"])
def test_a_manifest_that_leads_out_of_its_folder_is_refused(first, workers, tmp_path, name):
    stage(first, "extract", "rows")
    with remote_files(first) as (files, top):
        path = f"{top}/{RUN}/extract/manifest.json"
        files.pipe_file(path, files.cat_file(path).replace(b"part/out.txt", name))
    second = workers("second")
    pull(second)
    with pytest.raises(DataError, match="outside of its folder"):
        fetch(second, RUN, "extract")
    assert not (tmp_path / "out.txt").exists()


def test_a_stage_before_which_another_is_missing_is_refused(first):
    with pytest.raises(DataError, match=r"stage dataset lacks .*extract.*run the stages before"):
        stage(first, "dataset", "set", inputs=("extract/part/out.txt",))
    with pytest.raises(DataError, match="stage extract is not done"):
        stage(first, "dataset", "set", reads=["extract"])


MANY = """
import sys
from pathlib import Path
from reactune.runs.remote import RunRoot
from reactune.runs.folders import StageResult, run_stage
root, names = RunRoot(Path(sys.argv[1]), sys.argv[2], 60), [f"{n}.txt" for n in range(400)]
def work(folder):
    for name in names:
        (folder / name).write_text(name)
    return StageResult("done", outputs=tuple(names))
run_stage(root.folder / sys.argv[3], "extract", work, inputs={}, settings={}, root=root)
"""


def test_a_stage_that_was_killed_before_its_manifest_is_done_again(s3_url, tmp_path):
    root = RunRoot(tmp_path / "first", s3_url, stale_seconds=60)
    push(root, new_run(root.folder, {}, run_id=RUN), ["config.json"])
    command = [sys.executable, "-c", MANY, str(root.folder), s3_url, RUN]
    with subprocess.Popen(command) as process:
        while f"{RUN}/extract/0.txt" not in objects(root):
            assert process.poll() is None
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    assert f"{RUN}/extract/manifest.json" not in objects(root)
    pull(root)
    assert manifests(root.folder / RUN) == {}
    assert stage(root, "extract", "rows")[1]
    assert not [name for name in objects(root) if "lock" in name]


@pytest.fixture
def registered(first):
    """A version whose files are at the URL, as the database keeps it."""
    run = first.folder / RUN

    def export(folder):
        (folder / "prompt").mkdir()
        (folder / "model.gguf").write_bytes(b"weights")
        (folder / "prompt" / "stop.txt").write_text("<end>")
        return StageResult("done", outputs=("model.gguf", "prompt/stop.txt"))

    def train(folder):
        (folder / "adapter").mkdir()
        (folder / "adapter" / "adapter_config.json").write_text("{}")
        (folder / "loss.svg").write_text("<svg/>")
        return StageResult("done", outputs=("adapter/adapter_config.json", "loss.svg"))

    for name, work in (("train", train), ("export", export)):
        run_stage(run, name, work, inputs={}, settings={}, root=first)
    model = ModelVersion(
        version=2,
        name="tip-generator:v2",
        run_id=RUN,
        gguf=run / "export" / "model.gguf",
        sha256=sha256_of(run / "export" / "model.gguf"),
        prompt_folder=run / "export" / "prompt",
        base="tiny",
        quantisation="q8_0",
        adapter=run / "train" / "adapter",
    )
    return as_stored(first, model)


def test_a_version_can_be_served_where_no_disk_is_in_common(registered, workers):
    second = workers("second")
    assert not registered.gguf.is_absolute()
    model = as_local(second, registered)
    fetch_release(second, model)
    assert model.gguf.read_bytes() == b"weights"
    assert (model.prompt_folder / "stop.txt").read_text() == "<end>"
    assert not model.adapter.exists()
    fetch_adapter(second, model)
    assert [path.name for path in model.adapter.iterdir()] == ["adapter_config.json"]
    assert not (model.adapter.parent / "loss.svg").exists()


def test_a_server_that_loads_adapters_gets_them_with_a_release(registered, workers):
    second = replace(workers("second"), with_adapters=True)
    model = as_local(second, registered)
    fetch_release(second, model)
    assert model.gguf.is_file()
    assert (model.adapter / "adapter_config.json").read_text() == "{}"


def test_a_gguf_that_is_not_the_registered_one_is_not_served(registered, workers):
    second = workers("second")
    with pytest.raises(DataError, match=f"SHA-256 {'ab' * 32}, but .* holds {registered.sha256}"):
        fetch_release(second, as_local(second, replace(registered, sha256="ab" * 32)))
    assert not as_local(second, registered).gguf.exists()


def test_a_version_of_one_machine_keeps_its_folders(workers):
    model = ModelVersion(1, "t:v1", "base", Path("/m/1.gguf"), "ab", Path("/m/prompt"), "b", "q8_0")
    second = workers("second")
    assert as_local(second, model) == as_local(LOCAL, model) == as_stored(LOCAL, model) == model
    fetch_release(second, model)
    assert not second.folder.exists()


def test_a_run_copied_to_the_url_by_hand_can_be_continued(url, tmp_path):
    local, root = RunRoot(tmp_path / "local"), RunRoot(tmp_path / "copies", url)
    new_run(local.folder, {}, run_id=RUN)
    stage(local, "extract", "rows")
    with remote_files(root) as (files, top):
        for file in (path for path in local.folder.rglob("*") if path.is_file()):
            files.put_file(str(file), f"{top}/{file.relative_to(local.folder).as_posix()}")
    assert stage(root, "dataset", "set", reads=["extract"])[1]
    assert (root.folder / RUN / "extract" / "part" / "out.txt").read_text() == "rows"


def test_a_url_that_does_not_answer_is_one_error(s3_url, tmp_path, monkeypatch):
    nowhere = RunRoot(tmp_path, "s3://no-such-bucket/runs")
    with pytest.raises(DataError, match=r"s3://no-such-bucket/runs failed: .*bucket does"):
        pull(nowhere)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(DataError, match=r"Unable to locate credentials; check .*environment"):
        pull(RunRoot(tmp_path, s3_url))
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.mark.parametrize("scheme", ["nope", "s3a-typo"])
def test_a_url_that_nothing_speaks_is_refused_with_what_to_install(tmp_path, scheme):
    with pytest.raises(ConfigError, match=rf"\[run\] root = {scheme}://b/runs.*reactune\[s3\]"):
        pull(RunRoot(tmp_path, f"{scheme}://b/runs"))


def test_settings_say_where_runs_are_kept(tmp_path):
    (tmp_path / "reactune.toml").write_text("")
    plain = load(tmp_path / "reactune.toml")
    assert run_root(plain) == RunRoot(tmp_path / "runs", "", 300)
    cache = f"model.cache_dir={tmp_path / 'cache'}"
    roots = [
        run_root(load(tmp_path / "reactune.toml", (cache, f"run.root={url}")))
        for url in ("s3://bucket/runs", "s3://bucket/runs/", "s3://bucket/others")
    ]
    assert [root.url for root in roots[:2]] == ["s3://bucket/runs"] * 2
    assert roots[0].folder == roots[1].folder != roots[2].folder
    assert roots[0].folder.parent == tmp_path / "cache"


def test_the_settings_say_after_how_many_seconds_a_lock_is_stale(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = ("run.root=memory://stale/runs", "run.stale_lock_seconds=7", "model.cache_dir=c")
    root = run_root(load(None, overrides))
    assert (root.stale_seconds, root.url) == (7, "memory://stale/runs")
