"""MLflow itself: a real SQLite store, kills in the middle, and a real tracking server."""

import signal
import socket
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest

from places import TESTS
from reactune.errors import ReleaseError
from reactune.release import registry
from reactune.release.registry import (
    RUN_TAG,
    contents,
    register,
    remove_files,
    set_aliases,
    tag_versions,
)
from registry_fixtures import (
    CURVE,
    SETTINGS,
    TAGS,
    aliases_of,
    mlflow_client,
    numbers_of,
    record_in,
)
from server_fixtures import tracking_server


@pytest.fixture
def uri(tmp_path):
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def record(tmp_path):
    return record_in(tmp_path)


def runs_of(client):
    experiment = client.get_experiment_by_name(SETTINGS.experiment)
    return client.search_runs([experiment.experiment_id])


def files_of(client, run, path=None):
    found = set()
    for each in client.list_artifacts(run, path):
        found |= files_of(client, run, each.path) if each.is_dir else {each.path}
    return found


def test_a_version_holds_its_origin(uri, record, tmp_path):
    assert register(SETTINGS, uri, record, artifact_root=tmp_path / "kept") == 1
    with mlflow_client(uri) as client:
        version = client.get_model_version(SETTINGS.model_name, "1")
        assert version.tags == {**TAGS, RUN_TAG: "run-1"}
        run = client.get_run(version.run_id)
        assert version.source == run.info.artifact_uri
        assert run.info.status == "FINISHED"
        assert run.info.run_name == "run-1"
        assert TAGS.items() <= run.data.tags.items()
        assert run.data.params["train.lora_rank"] == "16"
        assert run.data.params["prompt.keys"] == "('story', 'excerpt')"
        assert run.data.params["long"] == "x" * 6000
        assert run.data.metrics["gate/tuned/preference_accuracy"] == 0.625
        curve = client.get_metric_history(version.run_id, "loss/sft")
        assert sorted((each.step, each.value) for each in curve) == list(CURVE)
        assert files_of(client, version.run_id) == {
            "gate.json", "loss.svg", "model.gguf", "prompt/stop.txt", "prompt/system.txt",
        }  # fmt: skip
        weights = client.download_artifacts(version.run_id, "model.gguf", str(tmp_path))
        assert Path(weights).read_bytes() == b"weights"


def test_files_lie_where_they_were_meant_to_and_never_in_the_current_folder(
    uri, record, tmp_path, monkeypatch
):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    register(SETTINGS, uri, record, artifact_root=tmp_path / "kept")
    assert list(elsewhere.iterdir()) == []
    assert [path.read_bytes() for path in (tmp_path / "kept").rglob("model.gguf")] == [b"weights"]


def test_no_password_of_a_url_reaches_mlflow(uri, record, tmp_path):
    urls = "postgresql://u:s3cret@h/db postgresql://h/db?user=u&password=s3cret s3://b/r?key=s3cret"
    named = replace(
        record,
        params={"model.base": urls},
        tags={"dataset": urls},
        texts={"trainer.log": f"cannot reach {urls}"},
    )
    register(SETTINGS, uri, named, artifact_root=tmp_path / "kept")
    tag_versions(SETTINGS, uri, {1: {"reason": urls}})
    with mlflow_client(uri) as client:
        version = client.get_model_version(SETTINGS.model_name, "1")
        run = client.get_run(version.run_id)
    shown = "postgresql://u:***@h/db postgresql://h/db?user=u&password=*** s3://b/r?key=***"
    assert run.data.params["model.base"] == run.data.tags["dataset"] == shown
    assert version.tags["dataset"] == version.tags["reason"] == shown
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.name for path in kept if b"s3cret" in path.read_bytes()] == []
    assert "trainer.log" in {path.name for path in kept}


def test_registering_twice_is_registering_once(uri, record, tmp_path):
    numbers = {register(SETTINGS, uri, record, artifact_root=tmp_path / "kept") for _ in range(3)}
    assert numbers == {1}
    with mlflow_client(uri) as client:
        assert len(runs_of(client)) == 1
        assert len(client.search_model_versions(f"name = '{SETTINGS.model_name}'")) == 1


def test_each_run_has_a_number_of_its_own(uri, record, tmp_path):
    assert numbers_of(SETTINGS, uri) == {}
    for number, run_id in enumerate(("run-1", "run-2", "run-3"), start=1):
        one = replace(record, run_id=run_id)
        assert register(SETTINGS, uri, one, artifact_root=tmp_path / "kept") == number
    assert numbers_of(SETTINGS, uri) == {"run-1": 1, "run-2": 2, "run-3": 3}


def test_versions_of_others_are_left_alone(uri, record, tmp_path):
    with mlflow_client(uri) as client:
        client.create_registered_model(SETTINGS.model_name)
        client.create_model_version(SETTINGS.model_name, source="file:///by/hand")
    assert register(SETTINGS, uri, record, artifact_root=tmp_path / "kept") == 2
    assert numbers_of(SETTINGS, uri) == {"run-1": 2}


def test_an_attempt_with_other_parameters_is_marked_as_failed(uri, record, tmp_path):
    with mlflow_client(uri) as client:
        experiment = client.create_experiment(
            SETTINGS.experiment, artifact_location=(tmp_path / "kept").as_uri()
        )
        left = client.create_run(experiment, tags={RUN_TAG: "run-1"}).info.run_id
        client.log_param(left, "train.lora_rank", 8)
        assert register(SETTINGS, uri, record, artifact_root=tmp_path / "kept") == 1
        assert client.get_run(left).info.status == "FAILED"
        assert {run.info.status for run in runs_of(client)} == {"FAILED", "FINISHED"}
        assert client.get_model_version(SETTINGS.model_name, "1").run_id != left


KILLS = (
    "create_registered_model", "create_experiment", "create_run", "log_batch", "log_text",
    "log_artifact", "log_artifacts", "set_terminated", "create_model_version",
)  # fmt: skip


@pytest.mark.parametrize(
    ("moment", "kills"),
    [
        pytest.param(
            "after",
            ("create_run", "log_artifacts", "create_model_version"),
            marks=pytest.mark.slow,
        ),
        pytest.param("before", KILLS, marks=pytest.mark.slow),
        pytest.param("after", KILLS, marks=pytest.mark.slow),
    ],
)
def test_killed_anywhere_and_repeated_it_makes_one_whole_version(uri, tmp_path, moment, kills):
    script = tmp_path / "killed.py"
    script.write_text(
        textwrap.dedent(f"""
            import os, signal, sys
            from pathlib import Path
            sys.path.insert(0, {str(TESTS)!r})
            from mlflow import MlflowClient
            from reactune.release.registry import register
            from registry_fixtures import SETTINGS, record_in

            def kill_itself_at(name):
                call = getattr(MlflowClient, name)

                def killed(*given, **named):
                    if {moment!r} == "after":
                        call(*given, **named)
                    os.kill(os.getpid(), signal.SIGKILL)

                setattr(MlflowClient, name, killed)

            folder = Path({str(tmp_path)!r})
            for name in sys.argv[1:]:
                # One process for each kill; they share the imports of this one.
                child = os.fork()
                if child == 0:
                    kill_itself_at(name)
                    register(SETTINGS, {uri!r}, record_in(folder), artifact_root=folder / "kept")
                    os._exit(0)
                print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """)
    )
    done = subprocess.run(
        [sys.executable, script, *kills], capture_output=True, text=True, check=True
    )
    finds_it = moment == "after"  # after the last kill, the version is there
    assert [int(line) for line in done.stdout.split()] == [-signal.SIGKILL] * len(kills)
    assert numbers_of(SETTINGS, uri) == ({"run-1": 1} if finds_it else {})
    assert register(SETTINGS, uri, record_in(tmp_path), artifact_root=tmp_path / "kept") == 1
    with mlflow_client(uri) as client:
        assert len(client.search_model_versions(f"name = '{SETTINGS.model_name}'")) == 1
        (run,) = runs_of(client)
        assert run.info.status == "FINISHED"
        curve = client.get_metric_history(run.info.run_id, "loss/sft")
        assert sorted((each.step, each.value) for each in curve) == list(CURVE)
        assert "prompt/stop.txt" in files_of(client, run.info.run_id)


def test_aliases_follow_what_is_live_and_report_each_change(uri, record, tmp_path):
    for run_id in ("run-1", "run-2"):
        register(SETTINGS, uri, replace(record, run_id=run_id), artifact_root=tmp_path / "kept")
    assert aliases_of(SETTINGS, uri) == {}
    assert set_aliases(SETTINGS, uri, champion=1, challenger=2) == [
        "registry alias champion: None -> 1",
        "registry alias challenger: None -> 2",
    ]
    assert set_aliases(SETTINGS, uri, champion=1, challenger=2) == []
    with mlflow_client(uri) as client:
        client.set_registered_model_alias(SETTINGS.model_name, "champion", "2")
        client.set_registered_model_alias(SETTINGS.model_name, "of-others", "1")
    assert set_aliases(SETTINGS, uri, champion=1, challenger=None) == [
        "registry alias champion: 2 -> 1",
        "registry alias challenger: 2 -> None",
    ]
    assert aliases_of(SETTINGS, uri) == {"champion": 1, "of-others": 1}


def test_an_alias_for_a_version_that_is_not_there_is_an_error(uri, record, tmp_path):
    with pytest.raises(ReleaseError, match=r"tip-generator.*see \[registry\] tracking_uri"):
        set_aliases(SETTINGS, uri, champion=1, challenger=None)
    register(SETTINGS, uri, record, artifact_root=tmp_path / "kept")
    with pytest.raises(ReleaseError, match=r"version=7.*not found"):
        set_aliases(SETTINGS, uri, champion=7, challenger=None)


def test_nothing_is_printed_on_the_terminal(uri, record, tmp_path, capfd):
    register(SETTINGS, uri, record, artifact_root=tmp_path / "kept")
    set_aliases(SETTINGS, uri, champion=1, challenger=None)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("away", "reason"),
    [
        ("http://127.0.0.1:9", "127.0.0.1"),
        ("postgresql+psycopg://someone:secret@127.0.0.1:9/mlflow", "connection failed"),
        ("postgresql+psycopg://127.0.0.1:9/mlflow?user=u&password=secret", "connection failed"),
        ("sqlite:////no/such/folder/mlflow.db", "unable to open database file"),
        ("gopher://127.0.0.1", "unsupported URI"),
    ],
)
def test_a_store_that_is_away_is_soon_one_error_without_the_password(
    away, reason, record, tmp_path
):
    started = time.monotonic()
    with pytest.raises(ReleaseError, match=rf"MLflow at .*{reason}.*tracking_uri") as raised:
        register(SETTINGS, away, record, artifact_root=tmp_path / "kept")
    assert time.monotonic() - started < 30
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_no_database_is_one_error(tmp_path, record):
    (tmp_path / "mlflow.db").write_text("not a database at all, but long enough to be read as one")
    with pytest.raises(ReleaseError, match="file is not a database"):
        register(
            SETTINGS, f"sqlite:///{tmp_path / 'mlflow.db'}", record, artifact_root=tmp_path / "kept"
        )


@pytest.mark.slow
def test_a_tracking_server_keeps_the_files_in_its_own_place(record, tmp_path):
    with tracking_server(tmp_path / "server") as (url, _):
        numbers = {register(SETTINGS, url, record, artifact_root=tmp_path / "no") for _ in range(2)}
        assert numbers == {1}
        assert set_aliases(SETTINGS, url, champion=1, challenger=None) != []
        with mlflow_client(url) as client:
            found = client.get_model_version_by_alias(SETTINGS.model_name, "champion")
            assert "model.gguf" in files_of(client, found.run_id)
            (tmp_path / "server" / "files").rename(tmp_path / "kept")
            (tmp_path / "server" / "files").write_text("no folder any more")
            other = replace(record, run_id="run-2")
            with pytest.raises(ReleaseError, match=r"failed: .*gate\.json.*and repeat"):
                register(SETTINGS, url, other, artifact_root=tmp_path / "no")
            (tmp_path / "server" / "files").unlink()
            (tmp_path / "kept").rename(tmp_path / "server" / "files")
            assert register(SETTINGS, url, other, artifact_root=tmp_path / "no") == 2
    assert not (tmp_path / "no").exists()
    assert [path.name for path in (tmp_path / "server").rglob("*.gguf")] == ["model.gguf"] * 2


def test_a_server_that_accepts_and_never_answers_is_soon_an_error(record, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "ANSWER_SECONDS", 0.5)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ReleaseError, match=r"failed: .*/health.*[Rr]ead timed out"):
            register(SETTINGS, uri, record, artifact_root=tmp_path / "kept")


def test_tags_are_put_on_known_versions_only(uri, record, tmp_path):
    register(SETTINGS, uri, record, artifact_root=tmp_path / "kept")
    tag_versions(SETTINGS, uri, {1: {"learned_from_erased": "yes", "n": "2"}, 7: {"n": "3"}})
    with mlflow_client(uri) as client:
        tags = client.get_model_version(SETTINGS.model_name, "1").tags
    assert tags["learned_from_erased"] == "yes"
    assert tags["n"] == "2"


def test_removing_files_of_a_version_leaves_numbers_curves_and_other_versions(
    uri, record, tmp_path
):
    for run_id in ("run-1", "run-2"):
        register(SETTINGS, uri, replace(record, run_id=run_id), artifact_root=tmp_path / "kept")
    remove_files(SETTINGS, uri, 1)
    remove_files(SETTINGS, uri, 1)
    remove_files(SETTINGS, uri, 9)
    with mlflow_client(uri) as client:
        first, second = (client.get_model_version(SETTINGS.model_name, n) for n in ("1", "2"))
        assert files_of(client, first.run_id) == set()
        assert "model.gguf" in files_of(client, second.run_id)
        assert len(client.get_metric_history(first.run_id, "loss/sft")) == len(CURVE)


def test_all_but_weights_is_read_once_and_nothing_stays_behind(uri, record, tmp_path):
    assert list(contents(SETTINGS, uri, tmp_path)) == []
    register(SETTINGS, uri, record, artifact_root=tmp_path / "kept")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    texts = {
        name: content.read_text() if isinstance(content, Path) else content
        for name, content in contents(SETTINGS, uri, scratch)
    }
    assert set(texts) == {
        "version 1", "run run-1", "run run-1: gate.json", "run run-1: loss.svg",
        "run run-1: prompt/stop.txt", "run run-1: prompt/system.txt",
    }  # fmt: skip
    assert texts["run run-1: prompt/stop.txt"] == "<|im_end|>"
    assert "smollm2" in texts["version 1"]
    assert [path for path in scratch.rglob("*") if path.is_file()] == []


def test_settings_that_are_too_long_for_mlflow_are_cut_and_never_refused(uri, record, tmp_path):
    long = replace(record, params={"prompt": "x" * 20_000})
    assert register(SETTINGS, uri, long, artifact_root=tmp_path / "kept") == 1
    # The same settings once more are the same run.
    assert register(SETTINGS, uri, long, artifact_root=tmp_path / "kept") == 1
