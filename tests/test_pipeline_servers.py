"""The loop with a team's servers, MLflow over HTTP and PostgreSQL, and what becomes of it when one
of them is lost in the middle."""

import contextlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psycopg
import pytest

from loop_fixtures import SECRET, copy_of_trained, expose, install, reactions, take_in
from reactune import deployment, pipeline, review
from reactune.cli import main
from reactune.records import STAGES
from reactune.runs.folders import all_runs
from reactune.runs.manifest import ending, manifests
from reactune.store.database import ROLLOUT_LOCK, create_store
from registry_fixtures import aliases_of, numbers_of
from server_fixtures import (
    administration,
    free_port,
    kill_tracking_server,
    lose,
    make_cluster,
    running_postgres,
    tracking_server,
)

pytestmark = pytest.mark.postgres
RUN = "20260401-080000-0000"
LEARNING = STAGES[: STAGES.index("register")]
PASSWORD = "only for these tests"


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("REACTUNE_KEY", SECRET)


@pytest.fixture
def cluster(monkeypatch):
    """A folder with a PostgreSQL cluster that asks for a password, and the port it is meant for."""
    folder = Path(tempfile.mkdtemp(prefix="reactune-postgres-"))
    make_cluster(folder, password=PASSWORD)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    yield folder, free_port()
    shutil.rmtree(folder, ignore_errors=True)


def url_of(port, database="postgres"):
    return f"postgresql://postgres@127.0.0.1:{port}/{database}"


@contextlib.contextmanager
def holding(url, statement):
    """Whoever wants what the statement locks waits, until the end or until the server is lost."""
    connection = psycopg.connect(url)
    try:
        connection.execute(statement)
        yield
    finally:
        connection.close()


def wait_until_somebody_waits(url, *, seconds=120):
    """Process id of the server's end of the connection that waits for a lock."""
    deadline = time.monotonic() + seconds
    with psycopg.connect(url, autocommit=True) as connection:
        while True:
            found = connection.execute("SELECT pid FROM pg_locks WHERE NOT granted").fetchone()
            if found is not None:
                return found[0]
            assert time.monotonic() < deadline, "nobody waited"
            time.sleep(0.05)


@contextlib.contextmanager
def cutting(url):
    """Cut, in the middle of its work, the connection that waits for a lock."""

    def cut():
        pid = wait_until_somebody_waits(url)
        with administration(url) as connection:
            connection.exec_driver_sql(f"SELECT pg_terminate_backend({pid})")

    thread = threading.Thread(target=cut)
    thread.start()
    yield
    thread.join()


def call(config, *arguments):
    """`reactune ...` as a process of its own."""
    return subprocess.Popen(
        [Path(sys.executable).with_name("reactune"), *arguments],
        cwd=config.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def complete(process):
    """Wait until a command has done all it should."""
    said = process.communicate(timeout=600)[1]
    assert process.returncode == 0, said


def one_error(process):
    """The line in which a command that failed says why, after whatever its bars showed."""
    said = process.communicate(timeout=600)[1]
    assert process.returncode == 1, said
    assert "Traceback" not in said
    last = said.rstrip().rpartition("\n")[2]
    assert last.startswith("reactune: "), said
    assert said.count("reactune: ") == 1, said
    return last


def written_manifests(folder):
    return {path.parent.name: path.read_bytes() for path in folder.glob("*/manifest.json")}


def numbers_there(config):
    """Version of each run, as MLflow counts them."""
    return numbers_of(config.registry, config.tracking_uri)


def assert_it_is_what_one_run_leaves(config):
    (folder,) = all_runs(config.run_root)
    assert ending(folder).stage == "deploy"
    assert set(manifests(folder)) == set(STAGES)
    assert numbers_there(config) == {"base": 1, folder.name: 2}
    assert [model.version for model in deployment.versions(config)] == [1, 2]
    rollout = deployment.current(config)
    assert (rollout.champion, rollout.challenger, rollout.share) == (1, 2, 0.05)
    aliases = aliases_of(config.registry, config.tracking_uri)
    assert aliases == {"champion": 1, "challenger": 2}


@pytest.mark.parametrize("table", ["rollouts", "tip_scores"])
def test_a_database_lost_while_it_is_read_is_one_error_and_a_rerun_reads_all(
    tmp_path, fresh_postgres_url, table, monkeypatch, capsys
):
    config = install(tmp_path, store={"url": fresh_postgres_url})
    take_in(config, reactions(40))
    monkeypatch.chdir(tmp_path)
    arguments = ["stage", "extract", "--run", RUN]
    lock = f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"
    with (
        holding(fresh_postgres_url, lock),
        cutting(fresh_postgres_url),
        pytest.raises(SystemExit) as ended,
    ):
        main(arguments)
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "terminating connection" in line
    assert line.endswith("repeat")
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("extract   40 in")


@pytest.mark.slow
def test_a_run_ends_at_an_mlflow_server_and_in_postgresql_and_says_when_the_server_is_gone(
    tmp_path, fresh_postgres_url, monkeypatch, capsys
):
    with tracking_server(tmp_path / "mlflow") as (uri, server):
        config = copy_of_trained(
            tmp_path, store={"url": fresh_postgres_url}, registry={"tracking_uri": uri}
        )
        create_store(config.store_url).dispose()
        (folder,) = all_runs(config.run_root)
        before = written_manifests(folder)
        for stage in ("register", "deploy"):
            shutil.rmtree(folder / stage)
        said = []
        assert pipeline.run(config, say=said.append).stage == "deploy"
        assert [line.endswith("(done before)") for line in said[1:]] == [True] * 6 + [False] * 2
        assert_it_is_what_one_run_leaves(config)
        after = written_manifests(folder)
        assert {stage: after[stage] for stage in LEARNING} == {s: before[s] for s in LEARNING}
        kept = list((tmp_path / "mlflow" / "files").rglob("model.gguf"))
        assert (folder / "export" / "model.gguf").read_bytes() in [f.read_bytes() for f in kept]
        kill_tracking_server(server)
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["promote"])
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"MLflow at {uri} failed" in line
    assert line.endswith("see [registry] tracking_uri, and repeat")
    assert deployment.current(config).champion == 2


@pytest.mark.slow
def test_the_whole_loop_goes_round_with_mlflow_over_http_and_postgresql(tmp_path, cluster):
    folder, port = cluster
    with running_postgres(folder, port=port):
        with administration(url_of(port)) as connection:
            for name in ("tips", "mlflow"):
                connection.exec_driver_sql(f"CREATE DATABASE {name}")
        logs = url_of(port, "mlflow").replace("postgresql", "postgresql+psycopg", 1)
        with tracking_server(tmp_path / "mlflow", store=logs) as (uri, _):
            store = {"url": url_of(port, "tips")}
            config = install(tmp_path, store=store, registry={"tracking_uri": uri})
            take_in(config, reactions(200))
            complete(call(config, "run"))
            assert_it_is_what_one_run_leaves(config)
            seen = expose(config, 2_000, champion=0.2, challenger=0.9)
            for number in range(1, 6):
                verdict = review.review(config, now=seen).verdict
                if verdict == "promote":
                    break
                more = {"champion": 0.2, "challenger": 0.9, "first": 2_000 * number}
                seen = expose(config, 2_000, **more)
            assert verdict == "promote"
            assert deployment.champion(config).version == 2
            assert aliases_of(config.registry, config.tracking_uri) == {"champion": 2}
    assert not (tmp_path / "reactune.db").exists()
    assert not (tmp_path / "mlflow.db").exists()
    assert not (tmp_path / "mlflow-artifacts").exists()


@pytest.mark.slow
def test_mlflow_killed_in_register_is_one_error_and_a_rerun_registers_once(tmp_path, cluster):
    folder, port = cluster
    with running_postgres(folder, port=port):
        with administration(url_of(port)) as connection:
            connection.exec_driver_sql("CREATE DATABASE mlflow")
        logs = url_of(port, "mlflow")
        at = {"store": logs.replace("postgresql", "postgresql+psycopg", 1), "port": free_port()}
        config = copy_of_trained(
            tmp_path,
            store={"url": url_of(port)},
            registry={"tracking_uri": f"http://127.0.0.1:{at['port']}"},
        )
        create_store(config.store_url).dispose()
        (run,) = all_runs(config.run_root)
        for stage in ("register", "deploy"):
            shutil.rmtree(run / stage)
        before = written_manifests(run)
        # Before it begins: nobody is there.
        assert "failed: " in one_error(call(config, "run"))
        for table in ("experiments", "metrics", "model_versions", "registered_model_aliases"):
            with tracking_server(tmp_path / "mlflow", **at) as (_, server):
                lock = f"LOCK TABLE {table} IN EXCLUSIVE MODE"
                with holding(logs, lock):
                    process = call(config, "run")
                    wait_until_somebody_waits(logs)
                    kill_tracking_server(server)
                    assert "failed: " in one_error(process)
            now = written_manifests(run)
            assert {stage: now[stage] for stage in before} == before
            assert "deploy" not in now
        with tracking_server(tmp_path / "mlflow", **at):
            complete(call(config, "run"))
            now = written_manifests(run)
            assert {stage: now[stage] for stage in before} == before
            assert_it_is_what_one_run_leaves(config)


@pytest.mark.slow
def test_postgresql_lost_in_any_stage_that_asks_it_is_one_error_and_a_rerun_completes(
    tmp_path, cluster
):
    folder, port = cluster
    url = url_of(port)
    with running_postgres(folder, port=port):
        config = install(tmp_path, store={"url": url})
        take_in(config, reactions(200))
    assert "cannot open the database" in one_error(call(config, "run"))
    before = {}
    waits = {
        "extract": "LOCK TABLE tip_scores IN ACCESS EXCLUSIVE MODE",
        "evaluate": "LOCK TABLE rollouts IN ACCESS EXCLUSIVE MODE",
        "register": "LOCK TABLE model_versions IN EXCLUSIVE MODE",
        "deploy": f"SELECT pg_advisory_lock({ROLLOUT_LOCK})",
    }
    for stage, statement in waits.items():
        with running_postgres(folder, port=port) as server:
            run_until(config, stage)
            with holding(url, statement):
                process = call(config, "run")
                wait_until_somebody_waits(url)
                lose(server)
                assert one_error(process).endswith("repeat")
        (run,) = all_runs(config.run_root)
        now = written_manifests(run)
        assert stage not in now
        assert {stage: now[stage] for stage in before} == before
        before = now
    with running_postgres(folder, port=port):
        complete(call(config, "run"))
        now = written_manifests(run)
        assert {stage: now[stage] for stage in before} == before
        assert_it_is_what_one_run_leaves(config)


def run_until(config, stage):
    """Do the stages before this one, where that needs no waiting for what is locked later."""
    runs = all_runs(config.run_root)
    for earlier in STAGES[: STAGES.index(stage)]:
        pipeline.run_one_stage(config, earlier, runs[-1].name, say=lambda line: None)
