"""`reactune erase --verify` searches every place in which a trace of a user can be left."""

import bz2
import gzip
import json
import lzma
import sqlite3
from contextlib import closing
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from tokenizers import Tokenizer, models, pre_tokenizers

from people_fixtures import (
    ANNA,
    KEY,
    NOW,
    OLD_KEY,
    RING,
    RUN,
    install,
    populate,
    rows_of,
    take_in,
    write_tip,
)
from reactune.erasure.erase import finish, request_erasure
from reactune.erasure.verify import verify
from reactune.privacy.hashing import HashingKeys, hashed_ids, user_key
from reactune.store.database import compact, create_store, writing
from reactune.store.schema import tip_scores

TEXT = "Dear anna.canary, read page 2 aloud to a friend before dinner."
HASH = user_key(KEY, ANNA)


@pytest.fixture(scope="module")
def erased(tmp_path_factory):
    """An installation from which one person was erased."""
    config = install(tmp_path_factory.mktemp("erased"))
    populate(config, runs={RUN: "deploy"})
    erase(config, ANNA)
    return config


def erase(config, *users, ring=RING):
    request_erasure(config, ring, users, reason="asked", now=NOW, say=print)
    finish(config, ring, now=NOW, say=print)


@pytest.fixture
def planted(erased):
    """Writes a file below the installation, and takes it away again."""
    files = []

    def plant(name, content):
        file = erased.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        files.append(file)
        return file

    yield plant
    for file in files:
        file.unlink()


def found(config, *, users=(ANNA,), ring=RING, **more):
    return verify(config, ring, users, **more).traces


def test_after_an_erasure_no_trace_is_found_and_all_places_are_listed(erased):
    report = verify(erased, RING, [ANNA])
    assert (report.traces, report.unchecked) == ([], [])
    said = "\n".join(report.searched)
    for place in ("reactune.db: 16 tables", "database file", "rejected rows", "runs in"):
        assert place in said


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("rejects.jsonl", ANNA.encode(), "the id"),
        (f"runs/{RUN}/train/trainer.log", f"row of {quote(ANNA)}".encode(), "the id"),
        (f"runs/{RUN}/export/parity.json", json.dumps({"prompt": TEXT}).encode(), "text"),
        (f"runs/{RUN}/evaluate/.gate.json.4711", HASH.encode(), "a hash"),
        (f"runs/{RUN}/notes.txt.gz", gzip.compress(b"x" * 9_000_000 + TEXT.encode()), "text"),
        ("runs/reviews/20260302-080000-0000/compare/look.json", TEXT.encode(), "text"),
        ("runs/trial/units.csv", f"2026-03-02:{HASH[:16]},champion".encode(), "a hash"),
        ("cache/tokens.bin", b"\0" * 100 + HASH.encode(), "a hash"),
        ("mlflow-artifacts/1/x/artifacts/dataset.md", TEXT.encode(), "text"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_trace_is_found_wherever_it_lies(erased, planted, name, content, kind):
    planted(name, content)
    (line,) = found(erased)
    assert line.startswith(str(erased.folder / name))
    assert kind in line
    assert ANNA not in line
    assert HASH not in line


def _in_parquet(column):
    file = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": column}), file)
    return file.getvalue().to_pybytes()


HOLDERS = {
    "a.jsonl": lambda text: json.dumps({"x": [text]}).encode(),
    "a.jsonl.gz": lambda text: gzip.compress(json.dumps({text: 1}).encode()),
    "a.txt.bz2": lambda text: bz2.compress(text.encode()),
    "a.txt.xz": lambda text: lzma.compress(text.encode()),
    "a.csv": lambda text: f'id,x\n1,"{text}"\n'.encode(),
    "a.url": lambda text: b"GET /v1/users/" + quote(text).encode(),
    "text.parquet": lambda text: _in_parquet([text]),
    "bytes.parquet": lambda text: _in_parquet([text.encode()]),
    "padded.parquet": lambda text: _in_parquet(pa.array([text.encode() + b"\0\0"], pa.binary())),
    "list.parquet": lambda text: _in_parquet([[["more", text]]]),
    "struct.parquet": lambda text: _in_parquet([{"a": [{"b": text}]}]),
    "key.parquet": lambda text: _in_parquet(
        pa.array([[(text, 1)]], pa.map_(pa.string(), pa.int64()))
    ),
    "value.parquet": lambda text: _in_parquet(
        pa.array([[("k", text)]], pa.map_(pa.string(), pa.string()))
    ),
    "dictionary.parquet": lambda text: _in_parquet(pa.array([text]).dictionary_encode()),
}


@pytest.mark.parametrize(
    ("text", "kind"), [(ANNA, "the id"), (HASH, "a hash of the id"), (TEXT, "text that was erased")]
)
def test_what_is_left_is_found_in_files_of_every_form(erased, planted, text, kind):
    files = {
        str(planted(f"runs/{RUN}/left/{name}", hold(text)))
        for name, hold in HOLDERS.items()
        if kind != "text that was erased" or not name.endswith(".url")
    }
    lines = [line for line in found(erased) if kind in line]
    assert {line.partition(": ")[0] for line in lines} == files


def test_a_number_that_is_an_id_is_found(erased, planted):
    file = planted("runs/n.parquet", _in_parquet([4711_0815]))
    assert found(erased, users=["47110815"]) == [f"{file}: the id"]


def test_files_that_are_packed_are_unchecked(erased, planted):
    file = planted(f"runs/{RUN}/left/old.zip", b"PK")
    assert verify(erased, RING, [ANNA]).unchecked == [f"{file}: cannot be read (ValueError)"]


def test_files_named_by_also_are_searched(erased, tmp_path):
    log = tmp_path / "logs" / "service.log"
    log.parent.mkdir()
    log.write_text(f"WARNING: {ANNA}\n")
    assert found(erased) == []
    assert found(erased, also=[tmp_path / "logs"]) == [f"{log}: the id"]
    assert found(erased, also=[log]) == [f"{log}: the id"]


def test_a_short_id_is_a_word_of_a_text_and_no_piece_of_one(erased, planted):
    planted("runs/numbers.bin", b"\0u-7\0")
    planted("runs/text.txt", b"u-77 and xu-7")
    assert found(erased, users=["u-7"]) == []
    file = planted("runs/more.txt", b'{"user": "u-7"}')
    assert found(erased, users=["u-7"]) == [f"{file}: the id"]


def test_an_id_that_json_or_a_url_spells_otherwise_is_found(erased, planted):
    for number, text in enumerate((json.dumps("jürgen/müller"), quote("jürgen/müller"))):
        planted(f"runs/{number}.txt", text.encode())
    assert len(found(erased, users=["jürgen/müller"])) == 2


def test_token_ids_are_read_as_the_text_they_stand_for(erased, planted):
    words = Tokenizer(models.WordLevel({word: n for n, word in enumerate(TEXT.split())}))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    base = planted("cache/base/tokenizer.json", words.to_str().encode()).parent
    rows = pa.table({"prompt_ids": [[0]], "completion_ids": [words.encode(TEXT).ids]})
    file = erased.folder / "runs" / RUN / "train" / "sft" / "rows.parquet"
    planted(f"runs/{RUN}/train/sft/job.json", json.dumps({"base_folder": str(base)}).encode())
    planted(f"runs/{RUN}/train/sft/rows.parquet", b"")
    pq.write_table(rows, file)
    assert found(erased) == [f"{file}: text that was erased"]
    (file.parent / "job.json").write_text("{}")
    report = verify(erased, RING, [ANNA])
    assert report.unchecked == [f"{file}: cannot be read (FileNotFoundError)"]


def test_a_text_that_another_user_was_shown_is_no_trace(erased, planted):
    file = planted(f"runs/{RUN}/dataset/more.jsonl", TEXT.encode())
    assert found(erased) == [f"{file}: text that was erased"]
    engine = create_store(erased.store_url)
    ben = hashed_ids(RING, "ben")[0]
    row = {
        "tip_id": "of ben", "user_key": ben.user_key, "key_id": ben.key_id, "kind": "focus",
        "context_json": "{}", "tip_content": TEXT, "created_at": NOW,
    }  # fmt: skip
    with writing(engine) as connection:
        write_tip(connection, RING, "ben", row)
    assert found(erased) == []
    with writing(engine) as connection:
        connection.execute(tip_scores.delete().where(tip_scores.c.tip_id == "of ben"))
    compact(engine)
    engine.dispose()
    assert found(erased) == [f"{file}: text that was erased"]


def test_hashes_under_every_key_are_searched_for(erased, planted):
    file = planted("runs/old.txt", user_key(OLD_KEY, ANNA).encode())
    assert found(erased) == []
    assert found(erased, ring=HashingKeys(KEY, (OLD_KEY,))) == [f"{file}: a hash of the id"]


def test_spilled_files_of_a_killed_stage_are_unchecked_until_an_erasure(erased, planted):
    spilled = planted(f"runs/{RUN}/extract/.work-killed/safe-0.arrow", b"packed rows")
    (line,) = verify(erased, RING, [ANNA]).unchecked
    assert line.startswith(str(spilled))
    erase(erased, "nobody@example.org")
    assert verify(erased, RING, [ANNA]).unchecked == []
    spilled.touch()  # what `planted` takes away again


def test_a_damaged_file_is_unchecked(erased, planted):
    file = planted(f"runs/{RUN}/extract/part.parquet", b"no parquet")
    report = verify(erased, RING, [ANNA])
    assert report.unchecked == [f"{file}: cannot be read (ArrowInvalid)"]


def test_free_pages_and_the_wal_are_searched_and_hold_nothing_after_an_erasure(tmp_path):
    config = install(tmp_path)
    file = tmp_path / "reactune.db"
    take_in(config, [row for user in (ANNA, "ben") for row in rows_of(user, 60)])
    with closing(sqlite3.connect(file, isolation_level=None)) as careless:
        careless.execute("PRAGMA secure_delete = OFF")
        careless.execute("DELETE FROM tip_scores WHERE user_key = ?", (HASH,))
        assert f"{file}-wal: a hash of the id" in found(config)
        careless.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert HASH.encode() in file.read_bytes()
    assert found(config) == [f"{file}: a hash of the id"]
    erase(config, ANNA)
    assert found(config) == []
    assert HASH.encode() not in file.read_bytes()


def test_what_our_connections_delete_is_overwritten_at_once(tmp_path):
    config = install(tmp_path)
    take_in(config, [row for user in (ANNA, "ben") for row in rows_of(user, 60)])
    engine = create_store(config.store_url)
    with writing(engine) as connection:
        connection.execute(tip_scores.delete().where(tip_scores.c.user_key == HASH))
    engine.dispose()
    assert found(config) == []


@pytest.mark.postgres
def test_on_postgres_the_report_names_what_vacuum_leaves(tmp_path, fresh_postgres_url):
    config = install(tmp_path, store={"url": fresh_postgres_url})
    take_in(config, [row for user in (ANNA, "ben") for row in rows_of(user, 60)])
    assert found(config) == ["table tip_scores: a hash of the id"]
    erase(config, ANNA)
    report = verify(config, RING, [ANNA])
    assert (report.traces, report.unchecked) == ([], [])
    assert "VACUUM FULL" in report.elsewhere[-1]
    engine = create_store(config.store_url)
    assert _stands_in_pages(engine, HASH)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM FULL tip_scores")
    assert not _stands_in_pages(engine, HASH)
    engine.dispose()


def _stands_in_pages(engine, text):
    """Whether the server's own files of the table and its indexes hold it."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("CHECKPOINT")
        relations = connection.scalars(
            sa.text(
                "SELECT pg_relation_filepath(oid) FROM pg_class WHERE oid = 'tip_scores'::regclass"
                " OR oid IN (SELECT indexrelid FROM pg_index WHERE indrelid ="
                " 'tip_scores'::regclass)"
            )
        ).all()
        pages = [
            connection.scalar(sa.text("SELECT pg_read_binary_file(:file)"), {"file": file})
            for file in relations
        ]
    return any(text.encode() in bytes(page) for page in pages)
