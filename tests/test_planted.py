"""Nothing of a person that was planted in rows is in any file of a run, whatever holds it."""

import json
import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from loop_fixtures import KEY, SECRET, reactions, read_rows, write_settings
from reactune import pipeline
from reactune.config.settings import load
from reactune.privacy.hashing import user_key
from reactune.store.database import create_store

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
    ("Mail o'brien@example.com today.", ("brien@", "example.com")),
    ("Mail o\u2019brien\uff20example.com today.", ("brien", "example.com")),
    ("Mail anna.k%40example.com today.", ("anna", "example.com")),
    ("My number is +49\u00a0170\u20111234567, thanks.", ("1234567",)),
    (
        "My number is \uff10\uff11\uff17\uff10 123 45 67, thanks.",
        ("123 45 67", "\uff10\uff11\uff17"),
    ),
    ("Pay from DE89\u00a03704 0044 0532 0130 00 please.", ("0044 0532",)),
    ("My card is 4111\u20131111\u20131111\u20131111, it expires.", ("1111\u20131111",)),
    ("My card is 4111.1111.1111.1111, it expires.", ("1111.1111",)),
    ("Log in to 192.168.17.203 first.", ("192.168", "17.203")),
    ("Log in to ::ffff:192.0.2.77 first.", ("192.0.2", "ffff")),
    ("My social security number is 078-05-1120.", ("078-05", "05-1120")),
    ("I was born on 17.02.1990 in spring.", ("17.02.1990",)),
    ("I live at 12 Baker Street, London NW1 6XE.", ("Baker", "6XE")),
)
IDS = ("anna.k@example.org", "zo\u00eb-7", "zoe\u0308-7", 47110815, 7123456.0, " u-998877 ",
       "6F9619FF-8B86-D011-B42D-00CF4FC964FF")  # fmt: skip
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


def planted_rows(seed):
    """Sound rows, and one for every planted text in a holder drawn for it, with one of the ids."""
    draw = random.Random(seed)
    tips = draw.sample(HARMLESS, 40)
    rows = [{**row, "tip_content": tip} for row, tip in zip(reactions(40), tips, strict=True)]
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
