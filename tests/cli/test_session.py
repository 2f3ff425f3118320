"""What is logged says where and of what kind, never what a person wrote; canaries prove it."""

import json
import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loop_fixtures import SECRET, reactions, write_settings
from reactune.cli.session import FULL, WITHHELD, where, without_secrets, word_tracebacks
from reactune.config.settings import load
from reactune.errors import DataError
from reactune.privacy.hashing import HashingKey, user_key
from reactune.store.database import create_store
from server_fixtures import free_port

CANARY = "Zanzibar4711"


def error_of(raise_it):
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        raise_it()
    return caught.value


def fails_with_a_text():
    raise KeyError(CANARY)


def test_a_traceback_shows_places_and_types_but_no_message_that_may_quote_a_user():
    text = where(error_of(fails_with_a_text))
    assert text.startswith("Traceback (most recent call last):\n")
    assert "in fails_with_a_text" in text
    assert f"KeyError {WITHHELD}" in text
    assert CANARY not in text


def test_our_own_messages_and_the_systems_are_shown():
    def ours_from_foreign():
        try:
            fails_with_a_text()
        except KeyError as error:
            raise DataError("the file is broken; make it again") from error

    text = where(error_of(ours_from_foreign))
    assert "reactune.errors.DataError: the file is broken; make it again" in text
    assert "direct cause" in text
    assert CANARY not in text
    assert "No such file" in where(error_of(lambda: Path("/nowhere/at/all").read_text()))


def test_errors_in_a_group_are_worded_alike():
    def group():
        raise ExceptionGroup(CANARY, [error_of(fails_with_a_text), DataError("ours")])

    text = where(error_of(group))
    assert CANARY not in text
    assert "in fails_with_a_text" in text
    assert "ours" in text


def test_tracebacks_are_shown_in_full_on_request(monkeypatch):
    monkeypatch.setenv(FULL, "full")
    assert CANARY in where(error_of(fails_with_a_text))


def test_logs_and_threads_word_tracebacks_alike(capsys, caplog, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    word_tracebacks()
    caplog.handler.addFilter(without_secrets)
    try:
        fails_with_a_text()
    except KeyError:
        logging.getLogger("other.library").exception("something broke")
    thread = threading.Thread(target=fails_with_a_text, name="worker")
    thread.start()
    thread.join()
    told = capsys.readouterr().err + caplog.text
    assert "something broke" in told
    assert "in thread worker" in told
    assert told.count("in fails_with_a_text") == 2
    assert CANARY not in told


ID, TIP, CONTEXT = (
    "canary-id-8c1f@example.org",
    "canarytip sings at dawn",
    "canarycontext in the attic",
)
CANARIES = {
    "id": ID, "tip": "canarytip", "context": "canarycontext", "key": SECRET,
}  # fmt: skip
DATA = {".parquet", ".jsonl"}
BROKEN_SERVICE = """
import sys
from reactune.cli import main
from reactune.release import runtimes

class Broken:
    def publish(self, model): pass
    def retire(self, model): pass
    def close(self): pass
    async def write(self, model, prompt, sampling, *, count=1):
        raise KeyError(prompt)
    async def end_writing(self): pass

runtimes.connect = lambda settings: Broken()
main(sys.argv[1:])
"""


def canary_row(number, **changes):
    (row,) = reactions(1, first=number)
    context = json.dumps({"time_of_day": f"{CONTEXT} {number}"})
    own = {"tip_id": f"canary-{number}", "user_id": ID, "tip_content": f"{TIP} {number}"}
    return {**row, **own, "context_json": context, **changes}


@pytest.fixture
def here(tmp_path):
    """An installation with canaries among the reactions, and a folder for all that is said."""
    file = write_settings(tmp_path, model={"cache_dir": str(tmp_path / "cache")})
    create_store(load(file).store_url).dispose()
    (tmp_path / "said").mkdir()
    return tmp_path


def call(here, name, *arguments, code):
    """A command in a process of its own; whatever it says is kept."""
    command = [Path(sys.executable).with_name("reactune"), "-v", *arguments]
    with (here / "said" / f"{name}.log").open("w") as log:
        done = subprocess.run(
            command, cwd=here, env={**os.environ, "REACTUNE_KEY": SECRET}, stdout=log, stderr=log
        )
    said = (here / "said" / f"{name}.log").read_text()
    assert done.returncode == code, said
    return said


@contextmanager
def serving(here):
    port = free_port()
    command = [sys.executable, "-c", BROKEN_SERVICE, "--set", f"serve.port={port}", "serve"]
    with (
        (here / "said" / "service.log").open("w") as log,
        subprocess.Popen(
            command, cwd=here, env={**os.environ, "REACTUNE_KEY": SECRET}, stdout=log, stderr=log
        ) as process,
    ):
        try:
            url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
            while True:
                try:
                    httpx.get(f"{url}/healthz", timeout=5)
                    break
                except httpx.TransportError:
                    assert process.poll() is None, (here / "said" / "service.log").read_text()
                    assert time.monotonic() < deadline
                    time.sleep(0.2)
            yield url
        finally:
            process.terminate()


def ask_in_every_wrong_way(url):
    """Requests with canaries: sound ones that break inside, and unsound ones."""
    tip = {"user": ID, "kind": "focus", "context": {"time_of_day": CONTEXT}, "names": [TIP]}
    answers = [
        httpx.post(f"{url}/v1/tips", json={**tip, "user": f"another {ID}"}, timeout=60),
        httpx.post(f"{url}/v1/tips", json={**tip, "kind": f"{TIP}\n"}),
        httpx.post(f"{url}/v1/tips", json={**tip, CONTEXT: 1}),
        httpx.post(f"{url}/v1/tips", json={**tip, "context": {"x": {"y": [CONTEXT]}}}),
        httpx.post(f"{url}/v1/tips", content=f"{{{ID}".encode()),
        httpx.post(f"{url}/v1/tips/{TIP}%00/shown"),
        httpx.post(f"{url}/v1/reactions", json={"tip_id": ID, "reaction": TIP, "dwell_ms": 1}),
        httpx.put(f"{url}/v1/users/{ID}/training", json={"allowed": CONTEXT}),
        httpx.put(f"{url}/v1/users/{ID}/training", json={"allowed": True}),
        httpx.get(f"{url}/v1/users/{ID}"),
    ]
    codes = [answer.status_code for answer in answers]
    assert codes == [503, 422, 422, 422, 422, 404, 422, 422, 204, 405]
    assert not any(canary in answer.text for answer in answers for canary in CANARIES.values())


def leaks(files, names=tuple(CANARIES)):
    return [
        f"{file}: {name}"
        for file in files
        for name in names
        if file.is_file() and CANARIES[name].encode() in file.read_bytes()
    ]


@pytest.mark.slow
def test_no_canary_leaves_the_places_that_are_made_for_it(here):
    rows = [*reactions(200), *(canary_row(number) for number in range(1_000, 1_012))]
    unsound = [
        canary_row(2_000, dwell_ms=-1),
        canary_row(2_001, reaction=TIP),
        canary_row(2_002, context_json=CONTEXT),
        canary_row(2_003, created_at=f"{TIP}"),
    ]
    lines = [json.dumps(row) for row in [*rows, *unsound]] + [f"{ID} {TIP} {CONTEXT}"]
    (here / "in.jsonl").write_text("\n".join(lines))
    assert "5 rejected" in call(here, "ingest", "ingest", "in.jsonl", code=2)

    # A source in which texts stand where numbers should: an engine's error would quote one.
    wrong = {**rows[-1], "user_key": user_key(HashingKey(b"k"), ID)}
    pq.write_table(pa.Table.from_pylist([wrong]), here / "x.parquet")
    columns = 'source.columns={dwell_ms = "tip_content"}'
    source = ("--set", "source.url=parquet://x.parquet", "--set", columns)
    assert "tip_content is of type string" in call(here, "source", *source, "run", code=1)

    # A trainer that diverges, and a registry that is no database.
    call(here, "diverged", "--set", "train.learning_rate=1e30", "run", code=1)
    (here / "no.db").write_text("no database")
    call(here, "no-registry", "--set", "registry.tracking_uri=sqlite:///no.db", "run", code=1)
    call(here, "run", "run", code=0)
    call(here, "status", "status", code=0)
    with serving(here) as url:
        ask_in_every_wrong_way(url)
        with closing(sqlite3.connect(here / "reactune.db")) as database:
            database.execute("ALTER TABLE tip_scores RENAME TO gone")
        for path in (f"/v1/tips/{ID}/shown", "/v1/reactions"):
            body = {"tip_id": ID, "reaction": "done", "dwell_ms": 1}
            assert httpx.post(f"{url}{path}", json=body).status_code == 503
        with closing(sqlite3.connect(here / "reactune.db")) as database:
            database.execute("ALTER TABLE gone RENAME TO tip_scores")
    assert "KeyError" in (here / "said" / "service.log").read_text()
    call(here, "consent", "consent", "refuse", "--user", ID, code=0)
    call(here, "erase", "erase", "--user", ID, "--reason", "asked", code=0)
    call(here, "verify", "erase", "--verify", "--user", ID, code=0)
    also = ("--also", "in.jsonl")
    assert "in.jsonl: text that was erased, the id" in call(
        here, "also", "erase", "--verify", "--user", ID, *also, code=3
    )

    said = list((here / "said").iterdir())
    assert leaks(said) == []
    runs = [file for file in (here / "runs").rglob("*") if file.is_file()]
    texts = [file for file in runs if file.suffix not in DATA]
    assert len(texts) > 20
    assert leaks([*texts, here / "rejects.jsonl"]) == []
    assert leaks(runs, ("id", "key")) == []
    registry = [here / "mlflow.db", *(here / "mlflow-artifacts").rglob("*")]
    assert leaks(registry) == []
