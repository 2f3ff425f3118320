"""Nothing of a person that was planted in rows is in any file of a run, whatever holds it."""

import json
import os
import random
import sqlite3
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

import httpx
import pyarrow.parquet as pq
import pytest

from cli_fixtures import write_rows
from loop_fixtures import KEY, SECRET, install, reactions, read_rows, write_settings
from reactune import pipeline
from reactune.config.settings import load
from reactune.privacy.hashing import user_key
from reactune.runs.folders import all_runs
from reactune.store.database import create_store
from server_fixtures import free_port
from service_processes import REACTUNE, model_server, running

RUN = "20260302-080000-0000"
NAMES = 'privacy.models={en = "names"}'
PROMPT = {"context_keys": ["time_of_day", "note", "tasks", "profile"], "cut_order": ["note"]}
DATASET = {"min_positives": 4, "min_negatives": 4}
# A text that holds it, and the parts of it by which it would be known.
PLANTED = (
    ("Please call Anna Schmidt about the lease.", ("Anna", "Schmidt")),
    ("Please call A\u0301nna Schmi\u200bdt about the lease.", ("nna", "Schmi")),
    ("Please ask Zoe\u0308 Castellano for the keys.", ("Zoe", "Castellano")),
    ("please ask zoe castellano for the keys", ("zoe", "castellano")),
    ("PLEASE ASK ZOE CASTELLANO FOR THE KEYS", ("ZOE", "CASTELLANO")),
    ("Mail o'brien@kontor-nord.org today.", ("brien@", "kontor-nord")),
    ("Mail o\u2019brien\uff20kontor-nord.org today.", ("brien", "kontor-nord")),
    ("Mail anna.k%40kontor-nord.org today.", ("anna", "kontor-nord")),
    ("My number is +49\u00a0170\u20117654123, thanks.", ("7654123",)),
    (
        "My number is \uff10\uff11\uff17\uff10 123 45 67, thanks.",
        ("123 45 67", "\uff10\uff11\uff17"),
    ),
    ("Pay from DE89\u00a03704 0044 0532 0130 00 please.", ("0044 0532",)),
    ("My card is 4111\u20131111\u20131111\u20131111, it expires.", ("1111\u20131111",)),
    ("My card is 4111.1111.1111.1111, it expires.", ("1111.1111",)),
    ("Log in to 192.168.17.203 first.", ("192.168", "17.203")),
    ("Log in to ::ffff:192.0.2.77 first.", ("192.0.2", "::ffff")),
    ("My social security number is 078-05-1120.", ("078-05", "05-1120")),
    ("I was born on 17.02.1990 in spring.", ("17.02.1990",)),
    ("I live at 12 Baker Street, London NW1 6XE.", ("Baker", "6XE")),
)
IDS = ("anna.k@example.org", "zo\u00eb-7", "zoe\u0308-7", 47110815, 7123456.0, " u-998877 ",
       "6F9619FF-8B86-D011-B42D-00CF4FC964FF")  # fmt: skip
PROGRAM = Path(sys.executable).with_name("reactune")
DATABASE = {"reactune.db", "reactune.db-wal", "reactune.db-shm"}
PAGES = ("/", "/reactions", "/runs", "/rollout", "/models", "/people", "/settings")
TOLD = (
    ("status", "--json"), ("review",), ("audit",), ("explain",), ("config",),
    ("report", "--days", "30", "--out", "month.html"),
)  # fmt: skip
HARMLESS = (Path(__file__).parent / "pii/harmless_tips.txt").read_text("utf-8").splitlines()
HOLDERS = (
    lambda text: {"note": text},
    lambda text: {"tasks": ["Drink a glass of water.", text]},
    lambda text: {"tasks": [{"title": text, "done": False}]},
    lambda text: {"profile": {"more": {"deep": [text]}}},
    lambda text: {"profile": {text: 1}},
    lambda text: {"note": json.dumps({"said": [text]})},
    lambda text: {"note": json.dumps({text: 1}, ensure_ascii=False)},
    lambda text: {"note": f"Read a page.\n{text}\nDrink water.", "tasks": [text]},
    lambda text: {"time_of_day": text, "note": text},
    lambda text: {"hidden": text},
)


def planted_rows(seed, *, sound=40):
    """So many sound rows, and one for every planted text in a holder drawn for it.

    The users of the latter have one of the ids.
    """
    draw = random.Random(seed)
    tips = sorted(draw.sample(HARMLESS, sound), key=len)
    tips[1::2], tips[::2] = tips[: sound // 2], tips[sound // 2 :]  # long ones are done
    rows = [{**row, "tip_content": tip} for row, tip in zip(reactions(sound), tips, strict=True)]
    for number, (text, _) in enumerate(PLANTED):
        context = draw.choice(HOLDERS)(text)
        tip = draw.choice(("Take a short walk.", text, f"Read it again. {text}"))
        rows.append(
            {
                **reactions(1, first=1_000 + number)[0],
                "user_id": IDS[number % len(IDS)],
                "context_json": json.dumps({"time_of_day": "night", **context}),
                "tip_content": tip,
            }
        )
    draw.shuffle(rows)
    return rows


def text_of(file):
    """What a file says: its bytes, of Parquet its values as well."""
    told = file.read_bytes().decode("utf-8", "replace")
    if file.suffix == ".parquet":
        told += repr(pq.read_table(file).to_pylist())
    return told


def planted_in(told):
    """Parts of what was planted, spelt as it was, as JSON, or as Python writes it."""
    parts = {part for _, parts in PLANTED for part in parts} | {str(each).strip() for each in IDS}
    forms = {part: {part, json.dumps(part)[1:-1], repr(part)[1:-1]} for part in parts}
    return [part for part, all_forms in forms.items() if any(form in told for form in all_forms)]


@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, 9))]
)
def test_nothing_that_was_planted_is_in_any_file_of_a_run(tmp_path, monkeypatch, capfd, seed):
    monkeypatch.setenv("REACTUNE_KEY", SECRET)
    config = load(write_settings(tmp_path, prompt=PROMPT, dataset=DATASET), (NAMES,))
    create_store(config.store_url).dispose()
    rows = planted_rows(seed)
    assert read_rows(config, rows, key=KEY).went_out == len(rows), (
        tmp_path / "rejects.jsonl"
    ).read_text()
    said = []
    for stage in ("extract", "dataset"):
        manifest = pipeline.run_one_stage(config, stage, RUN, say=said.append)
    run = config.run_root / RUN
    assert manifest.outcome == "done"
    files = [file for file in run.rglob("*") if file.is_file()]
    assert {"labelled.parquet", "examples.parquet", "README.md"} <= {file.name for file in files}
    left = {file.name: planted_in(text_of(file)) for file in files}
    assert {name: parts for name, parts in left.items() if parts} == {}
    told = "\n".join([*said, *capfd.readouterr()])
    assert planted_in(told) == []
    # The database holds texts as they came, and no id.
    with closing(sqlite3.connect(tmp_path / "reactune.db")) as database:
        dump = "\n".join(database.iterdump())
    assert [each for each in IDS if str(each).strip() in dump] == []
    assert user_key(KEY, IDS[0]) in dump


def command(folder, *arguments, codes=(0,), given=""):
    """What a command said, as a process in this folder."""
    done = subprocess.run(
        [PROGRAM, "--set", NAMES, *arguments],
        cwd=folder, input=given, capture_output=True, text=True, check=False, timeout=600,
        env={**os.environ, "REACTUNE_KEY": SECRET},
    )  # fmt: skip
    assert done.returncode in codes, done.stdout + done.stderr
    return done.stdout + done.stderr


@contextmanager
def serving(folder, port):
    """A client of the service, which is a process.

    What the tiny model writes is no language; a server that writes a fixed tip stands in for it.
    """
    model_port, address = free_port(), f"http://127.0.0.1:{port}"
    there = ("serve.runtime=ollama", f"serve.ollama_url=http://127.0.0.1:{model_port}")
    options = [part for each in (NAMES, *there) for part in ("--set", each)]
    serve = (*REACTUNE, *options, "serve")
    with (
        model_server(model_port, folder.parent),
        running(*serve, ready=f"{address}/readyz", folder=folder, key=SECRET),
        httpx.Client(base_url=address, trust_env=False, timeout=60) as client,
    ):
        yield client


def told_by(client, page):
    """What a page says."""
    answer = client.get(page)
    assert answer.status_code == 200, (page, answer.text)
    return answer.text


def ask_with_planted(client, draw):
    """Ask, react, and err in every way a client can, with what was planted; ids of the tips."""
    tips = []
    for number, (text, _) in enumerate(PLANTED):
        user = IDS[number % len(IDS)]
        body = {"kind": "focus", "user": str(user), "context": draw.choice(HOLDERS)(text)}
        tip = client.post("/v1/tips", json=body)
        assert tip.status_code in (200, 400, 422), tip.text
        if tip.status_code == 200:
            tips.append(tip.json()["tip_id"])
        client.post("/v1/tips", json={**body, "names": [text]})
        client.post("/v1/tips", json={**body, "kind": text, "tip_id": text})
        client.post("/v1/tips", content=f'{{"user": "{text}", "context": [')
        client.post("/v1/reactions", json={"tip_id": "t", "reaction": text, "dwell_ms": user})
        client.post("/v1/chat/completions", json={
            "model": text, "user": str(user), "messages": [{"role": "user", "content": text}],
        })  # fmt: skip
        client.get(f"/v1/route?user={quote(str(user))}")
        client.get(f"/runs/{quote(text, safe='')}")
        client.post(f"/v1/tips/t/{quote(text, safe='')}")
    for tip_id in tips:
        reaction = {"tip_id": tip_id, "reaction": "done", "dwell_ms": 20_000}
        assert client.post("/v1/reactions", json=reaction).status_code == 204
    client.put(f"/v1/users/{quote(str(IDS[0]), safe='')}/training", json={"allowed": False})
    return tips


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_that_was_planted_leaves_the_database_in_the_whole_loop(tmp_path, seed):
    here, port, draw = tmp_path / "installation", free_port(), random.Random(seed)
    here.mkdir()
    serve = {"port": port, "max_tokens": 8, "threads": 1, "parallel": 1}
    # Whatever was learned is put on trial.
    gate = {"tolerance": 1.0, "lower_loss_needs_gain": False, "alpha": 0.4}
    config = install(here, prompt=PROMPT, serve=serve, gate=gate)
    file = write_rows(tmp_path / "rows.jsonl", planted_rows(seed, sound=200))
    said = [command(here, "ingest", str(file), codes=(0, 2)), command(here, "run")]
    assert "challenger tip-generator:v2" in command(here, "status")
    with serving(here, port) as client:
        served = ask_with_planted(client, draw)
        (run,) = all_runs(config.run_root)
        said += [told_by(client, page) for page in (*PAGES, f"/runs/{run.name}")]
    assert len(served) > len(PLANTED) / 2
    said += [command(here, *each, codes=(0, 3)) for each in TOLD]

    places = [each for each in here.rglob("*") if each.is_file() and each.name not in DATABASE]
    assert {"labelled.parquet", "model.gguf", "mlflow.db", "month.html"} <= {
        each.name for each in places
    }
    assert any(each.name.startswith("log-") for each in places)  # the service's
    left = {str(each.relative_to(here)): planted_in(text_of(each)) for each in places}
    assert {name: parts for name, parts in left.items() if parts} == {}
    assert [parts for each in said if (parts := planted_in(each))] == []
    # Rows of tips that the service gave hold placeholders; texts from files are as they came.
    with closing(sqlite3.connect(here / "reactune.db")) as database:
        dump = "\n".join(database.iterdump())
        marks = ", ".join("?" * len(served))
        query = f"SELECT * FROM tip_scores WHERE tip_id IN ({marks})"
        given = database.execute(query, served).fetchall()
    assert len(given) == len(served)
    assert planted_in(repr(given)) == []
    assert [each for each in IDS if str(each).strip() in dump] == []

    # Everybody is erased: what was planted is then nowhere, and the search for traces agrees.
    # A number of a file is a person by its value, what a client sends by how it is spelt.
    everybody = {*map(str, IDS), "7123456"}
    ids = "".join(f"{each}\n" for each in everybody)
    command(here, "erase", "--user", "-", "--reason", "asked", "--allow-unknown", given=ids)
    report = command(here, "erase", "--verify", "--user", "-", given=ids)
    assert report.rstrip().endswith("nothing")
    with closing(sqlite3.connect(here / "reactune.db")) as database:
        assert planted_in("\n".join(database.iterdump())) == []
