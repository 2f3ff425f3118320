import csv
import gzip
import hashlib
import hmac
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from uuid import UUID

import pyarrow as pa
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from places import SHARED
from reactune.config.sections import IngestConfig
from reactune.data.ingest import BATCH_ROWS, LATEST, SUPERSEDED, ingest
from reactune.errors import ConfigError, DataError
from reactune.privacy.hashing import HashingKey
from reactune.privacy.user_ids import AT_ENDS, MISSING
from reactune.records import NOT_UTF8
from reactune.store.database import create_store, writing
from reactune.store.queries import upsert_scores
from reactune.store.schema import tip_scores

REAL = SHARED / "data/upworthy/tip_scores.jsonl.gz"
needs_real = pytest.mark.skipif(not REAL.is_file(), reason=f"{REAL} is absent")
KEY = HashingKey(b"0123456789abcdef0123456789abcdef")
SECRET = "Zanzibar4711"
ROW = {
    "tip_id": "t1",
    "user_id": "anna",
    "kind": "headline",
    "tip_content": "Take a walk",
    "context_json": '{"story": "rain"}',
    "shown_at": "2026-03-04T12:00:00+02:00",
    "reaction": "done",
    "dwell_ms": 20_000,
}
NOON = datetime(2026, 3, 4, 10, tzinfo=UTC)
on_fixtures = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


FORM = "such as 2026-03-04T10:00:00Z"
NAIVE = f"naive shown_at; write a time with its zone, {FORM}"
UNKNOWN_REACTION = "unknown reaction, none of done, dismiss, snooze"
UNPARSABLE = f"unparsable shown_at; write a time {FORM}"


def row(number=1, **values):
    return ROW | {"tip_id": f"t{number}"} | values


def without(name):
    return {key: value for key, value in ROW.items() if key != name}


def take(
    engine, *files, rejects=None, progress=None, batch_rows=BATCH_ROWS, say=print,
    without_consent="allow", now=LATEST, **config,
):  # fmt: skip
    rejects = rejects or files[0].parent / "rejects.jsonl"
    return ingest(
        engine,
        files,
        now=now,
        settings=IngestConfig(**config),
        key=KEY,
        rejects=rejects,
        progress=progress,
        batch_rows=batch_rows,
        say=say,
        without_consent=without_consent,
    )


def stored(engine):
    """Every row by tip_id, without what ingest leaves alone."""
    query = sa.select(tip_scores).order_by(tip_scores.c.tip_id)
    with engine.connect() as connection:
        rows = [dict(found) for found in connection.execute(query).mappings()]
    return {found["tip_id"]: found for found in rows}


def listed(file):
    return [json.loads(line) for line in (file.parent / "rejects.jsonl").read_text().splitlines()]


@pytest.fixture
def on_sqlite(sqlite_url):
    """For what the kind of database has no part in."""
    engine = create_store(sqlite_url)
    yield engine
    engine.dispose()


@pytest.fixture
def write(tmp_path):
    """Writes raw lines (or rows, as JSON) into a file and returns its path."""

    def write(*lines, name="tips.jsonl"):
        as_bytes = [
            line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines
        ]
        file = tmp_path / name
        content = b"".join(line + b"\n" for line in as_bytes)
        file.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return file

    return write


def test_a_row_becomes_a_score_with_a_hashed_user_and_times_in_utc(engine, write):
    counts = take(engine, write(row(created_at="2026-03-04T09:59:00Z")))
    anna = hmac.new(KEY.secret, b"anna", hashlib.sha256).hexdigest()
    score = stored(engine)["t1"]
    expected = {
        "user_key": anna,
        "key_id": KEY.key_id,
        "kind": "headline",
        "source": "llm",
        "context_json": '{"story": "rain"}',
        "tip_content": "Take a walk",
        "created_at": NOON - timedelta(minutes=1),
        "shown_at": NOON,
        "reaction": "done",
        "dwell_ms": 20_000,
        "training_allowed": True,
        "cut": False,
    }
    assert score == dict.fromkeys(score) | expected | {"tip_id": "t1"}
    assert (counts.came_in, counts.went_out, counts.refused) == (1, 1, {})


def test_a_row_without_reaction_is_a_row(engine, write):
    take(
        engine, write(row(1, reaction=None, dwell_ms=None), {**without("reaction"), "tip_id": "t2"})
    )
    assert [score["reaction"] for score in stored(engine).values()] == [None, None]


def test_created_at_defaults_to_shown_at_and_the_other_way_for_who_reacted(engine, write):
    created = without("shown_at") | {"tip_id": "t2", "created_at": "2026-03-04T10:00:00Z"}
    unseen = created | {"tip_id": "t3", "reaction": None, "dwell_ms": None}
    take(engine, write(row(1), created, unseen))
    scores = stored(engine)
    times = {name: (score["created_at"], score["shown_at"]) for name, score in scores.items()}
    assert times == {"t1": (NOON, NOON), "t2": (NOON, NOON), "t3": (NOON, None)}


def test_a_context_may_be_an_object_or_its_text(engine, write):
    context = {"story": "\N{OWL} & \N{HEBREW LETTER SHIN}", "tasks": ["a", "b"], "n": 1.5}
    take(engine, write(row(1, context_json=context), row(2, context_json=json.dumps(context))))
    scores = stored(engine)
    assert json.loads(scores["t1"]["context_json"]) == context
    assert scores["t2"]["context_json"] == json.dumps(context)


def test_ids_may_be_numbers(engine, write):
    take(engine, write(row(tip_id=7, user_id=42), row(tip_id="8", user_id="42")))
    scores = stored(engine)
    assert scores.keys() == {"7", "8"}
    assert scores["7"]["user_key"] == scores["8"]["user_key"]


def test_a_raw_user_id_reaches_neither_the_database_nor_the_rejects(sqlite_url, write):
    engine = create_store(sqlite_url)
    file = write(row(1, user_id=SECRET), row(2, user_id=SECRET, reaction="love"))
    take(engine, file)
    engine.dispose()
    held = [path for path in file.parent.iterdir() if path != file]
    assert {path.name for path in held} == {"reactune.db", "rejects.jsonl"}
    assert not any(SECRET.encode() in path.read_bytes() for path in held)


MALFORMED = {
    "not valid JSON": b'{"tip_id": "Zanzibar4711", ',
    "not a JSON object": b'["Zanzibar4711"]',
    NOT_UTF8: json.dumps(row(2, tip_content=SECRET)).encode()[:-2] + b', "x": "\xff"}',
    "NUL byte": row(2, tip_content=f"{SECRET}\0"),
    "lone surrogate": row(2, tip_content=f"{SECRET}\ud83d"),
    "non-finite number": b'{"tip_id": "Zanzibar4711", "dwell_ms": NaN}',
    UNKNOWN_REACTION: row(2, reaction=SECRET),
    "negative dwell_ms": row(2, dwell_ms=-1),
    "dwell_ms is not a number": row(2, dwell_ms={"ms": 1}),
    "out-of-range dwell_ms": row(2, dwell_ms=2**31),
    "oversized tip_content": row(2, tip_content=SECRET + "x" * 20_000),
    "oversized context_json": row(2, context_json={"story": SECRET + "x" * 20_000}),
    "oversized tip_id": row(2, tip_id=SECRET + "x" * 500),
    "oversized line": row(2, extra=SECRET + "x" * 2_000_000),
    "tip_content is not text": row(2, tip_content=[SECRET]),
    NAIVE: row(2, shown_at="2026-03-04T12:00:00"),
    UNPARSABLE: row(2, shown_at=SECRET),
    "out-of-range shown_at": row(2, shown_at="0001-01-01T00:00:00+14:00"),
    "out-of-range created_at": row(2, created_at="2100-01-01T00:00:00Z"),
    UNPARSABLE.replace("shown", "reacted"): row(2, reacted_at=1_700),
    "context_json is not a JSON object": row(2, context_json=f'["{SECRET}"]'),
    "context_json is nested too deep": row(2, context_json='{"a":' * 30 + "1" + "}" * 30),
    "training_allowed is not true or false": row(2, training_allowed=SECRET),
    "missing field created_at": without("shown_at"),
    "missing field tip_content": row(2, tip_content=" "),
    **{f"missing field {name}": without(name) for name in ("tip_id", "user_id", "kind")},
    "missing field context_json": row(2, context_json=None),
    **{
        f"{name} is the text of a missing value": row(2, **{name: " undefined"})
        for name in ("tip_id", "user_id")
    },
}


@pytest.mark.parametrize("reason", MALFORMED)
def test_a_malformed_row_is_listed_without_its_text_and_the_rest_is_kept(on_sqlite, write, reason):
    file = write(row(1), MALFORMED[reason], row(3))
    counts = take(on_sqlite, file)
    assert listed(file) == [{"file": str(file), "line": 2, "reason": reason}]
    assert SECRET not in (file.parent / "rejects.jsonl").read_text()
    assert stored(on_sqlite).keys() == {"t1", "t3"}
    assert (counts.came_in, counts.went_out, counts.refused) == (3, 2, {reason: 1})


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"dwell_ms": True}, "dwell_ms is not a number"),
        ({"dwell_ms": "long"}, "dwell_ms is not a number"),
        ({"dwell_ms": [1]}, "dwell_ms is not a number"),
        ({"reaction": ["done"]}, UNKNOWN_REACTION),
        ({"reaction": "liked"}, UNKNOWN_REACTION),
        ({"tip_id": True}, "tip_id is not text"),
        ({"tip_id": 1.5}, "tip_id is not text"),
        ({"kind": 3}, "kind is not text"),
        ({"user_id": "\udfff"}, "lone surrogate"),
        ({"shown_at": "2026-03-04"}, NAIVE),
        ({"shown_at": "2026-02-30T00:00:00Z"}, UNPARSABLE),
        ({"shown_at": "9999-12-31T23:59:59-14:00"}, "out-of-range shown_at"),
        ({"shown_at": "1969-12-31T23:59:59Z"}, "out-of-range shown_at"),
        ({"context_json": '{"a": 1e999}'}, "non-finite number"),
        ({"context_json": '{"a": -Infinity}'}, "non-finite number"),
        ({"context_json": '{"a": "\\u0000"}'}, "NUL byte"),
        ({"context_json": '{"a": ["\\ud800"]}'}, "lone surrogate"),
        ({"context_json": {"a\0": 1}}, "NUL byte"),
        ({"context_json": "{" * 19_000}, "not valid JSON"),
        ({"context_json": "[" * 19_000}, "not valid JSON"),
        ({"context_json": 5}, "context_json is not a JSON object"),
        ({"training_allowed": "maybe"}, "training_allowed is not true or false"),
        ({"cut": 2}, "cut is not true or false"),
    ],
)
def test_a_malformed_value_is_named_by_its_reason(on_sqlite, write, values, reason):
    assert take(on_sqlite, write(row(**values))).refused == {reason: 1}


@pytest.mark.parametrize(
    ("values", "column", "meaning"),
    [
        ({"dwell_ms": 0}, "dwell_ms", 0),
        ({"reaction": " Dismissed"}, "reaction", "dismiss"),
        ({"reaction": "SNOOZED"}, "reaction", "snooze"),
        ({"cut": True}, "cut", True),
        ({"cut": None}, "cut", False),
        ({"dwell_ms": 2000.0}, "dwell_ms", 2000),
        ({"dwell_ms": 20999.6}, "dwell_ms", 21000),
        ({"dwell_ms": "20999.6"}, "dwell_ms", 21000),
        ({"dwell_ms": 2**31 - 1}, "dwell_ms", 2**31 - 1),
        ({"reaction": "snooze"}, "reaction", "snooze"),
        ({"reaction": " Done"}, "reaction", "done"),
        ({"training_allowed": False}, "training_allowed", False),
        ({"training_allowed": "f"}, "training_allowed", False),
        ({"cut": "yes"}, "cut", True),
        ({"training_allowed": 0}, "training_allowed", False),
        ({"training_allowed": None}, "training_allowed", False),
        ({"source": "rule"}, "source", "rule"),
        ({"source": None}, "source", "llm"),
        ({"source": "NULL"}, "source", "llm"),
        ({"tip_content": "x" * 20_000}, "tip_content", "x" * 20_000),
        ({"tip_content": " \ud83e\udd89 "}, "tip_content", " \N{OWL} "),
        ({"reacted_at": "2026-03-04T10:00:00Z"}, "reacted_at", NOON),
        ({"shown_at": "2026-03-04 10:00:00.5+00:00"}, "shown_at", NOON + timedelta(seconds=0.5)),
    ],
)
def test_a_sound_value_is_stored_as_meant(on_sqlite, write, values, column, meaning):
    take(on_sqlite, write(row(**values)))
    assert stored(on_sqlite)["t1"][column] == meaning


def test_long_texts_pass_where_the_settings_allow_them(engine, write):
    text = "\N{OWL}" * 1_000_000
    rows = [row(1, tip_content=text, context_json={"story": text})]
    counts = take(engine, write(*rows), _as_csv(write, rows), max_text_chars=1_000_100)
    assert counts.came_in == 2
    assert stored(engine)["t1"]["tip_content"] == text


def test_blank_lines_are_no_rows(engine, write):
    counts = take(engine, write(b"", row(1), b"  \r", row(2)))
    assert (counts.came_in, counts.went_out) == (2, 2)


def test_an_empty_file_gives_nothing(engine, write):
    files = [write(name=name) for name in ("a.jsonl", "a.csv", "a.jsonl.gz")]
    assert take(engine, *files).came_in == 0


def test_a_later_row_of_a_tip_wins_and_the_earlier_is_counted(engine, write):
    file = write(row(1, reaction=None), row(2), row(1, reaction="done"), row(1, reaction="snooze"))
    counts = take(engine, file)
    assert stored(engine)["t1"]["reaction"] == "snooze"
    assert (counts.came_in, counts.went_out, counts.refused) == (4, 2, {SUPERSEDED: 2})
    assert listed(file) == []


def test_what_serving_has_written_stays(engine, write):
    served = {
        "model_version": 2,
        "arm": "challenger",
        "rollout_id": "first",
        "unit_key": "u:2026-03-04",
        "propensity": 0.05,
        "sampling_json": "{}",
        "fallback": "slow",
        "answer_ms": 120,
    }
    take(engine, write(row()))
    with writing(engine) as connection:
        upsert_scores(connection, [stored(engine)["t1"] | served])
    take(engine, write(row(reaction="dismiss")))
    score = stored(engine)["t1"]
    assert {name: score[name] for name in served} == served
    assert score["reaction"] == "dismiss"


def test_who_opted_out_stays_out_when_a_later_row_does_not_speak_of_it(engine, write):
    take(engine, write(row(training_allowed=False), row(training_allowed=None)))
    take(engine, write(row()))
    assert stored(engine)["t1"]["training_allowed"] is False


@on_fixtures
@given(data=st.data(), batch_rows=st.integers(1, 5))
def test_the_size_of_a_batch_makes_no_difference(engine, write, data, batch_rows):
    changes = st.fixed_dictionaries(
        {"tip_id": st.sampled_from("abc")},
        optional={
            "reaction": st.sampled_from(["done", "dismiss", None, "love"]),
            "dwell_ms": st.sampled_from([1, 2, None]),
            "source": st.sampled_from(["llm", "rule", None]),
            "training_allowed": st.sampled_from([True, False, None]),
        },
    )
    base = {name: ROW[name] for name in ("user_id", "kind", "tip_content", "context_json")}
    rows = [
        base | {"created_at": "2026-03-04T10:00:00Z"} | each
        for each in data.draw(st.lists(changes))
    ]
    _forget(engine)
    counts = take(engine, write(*rows), batch_rows=batch_rows)

    is_stated = any("training_allowed" in each for each in rows)
    expected = {}
    for each in rows:
        if each.get("reaction") == "love":
            continue
        before = expected.get(each["tip_id"], ("llm", not is_stated, None, None))
        named = [each.get("source"), each.get("training_allowed")]
        expected[each["tip_id"]] = (
            before[0] if named[0] is None else named[0],
            before[1] if named[1] is None else named[1],
            each.get("reaction", before[2]),
            each.get("dwell_ms", before[3]),
        )
    names = ("source", "training_allowed", "reaction", "dwell_ms")
    found = {key: tuple(score[name] for name in names) for key, score in stored(engine).items()}
    assert found == expected
    assert counts.came_in == len(rows) == counts.went_out + sum(counts.refused.values())
    assert counts.went_out == len(expected)


TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1
).filter(lambda text: text.strip(AT_ENDS) not in {"", *MISSING})
SOUND = st.fixed_dictionaries(
    {
        "tip_id": TEXT,
        "user_id": TEXT,
        "kind": TEXT,
        "tip_content": TEXT,
        "context_json": st.dictionaries(
            TEXT, TEXT | st.integers() | st.booleans() | st.lists(TEXT)
        ),
        "reaction": st.sampled_from(["done", "dismiss", "snooze", None]),
        "dwell_ms": st.none() | st.integers(0, 2**31 - 1),
        "training_allowed": st.booleans(),
        "shown_at": st.builds(
            lambda time, minutes: time.replace(tzinfo=timezone(timedelta(minutes=minutes))),
            st.datetimes(datetime(1970, 1, 3), datetime(2099, 12, 1)),
            st.integers(-840, 840),
        ),
    }
)


@on_fixtures
@given(rows=st.lists(SOUND, max_size=4, unique_by=lambda each: each["tip_id"]))
@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "csv", "parquet"])
def test_sound_rows_come_back_as_they_went_in(engine, write, rows, kind):
    _forget(engine)
    as_text = [each | {"shown_at": each["shown_at"].isoformat()} for each in rows]
    if kind == "csv":
        file = _as_csv(write, as_text)
    elif kind == "parquet":
        file = _as_parquet(write, rows)
    else:
        file = write(*as_text, name=f"tips.{kind}")
    counts = take(engine, file)
    assert (counts.came_in, counts.went_out, counts.refused) == (len(rows), len(rows), {})
    scores = stored(engine)
    for each in rows:
        score = scores[each["tip_id"]]
        assert json.loads(score["context_json"]) == each["context_json"]
        for name in ("kind", "tip_content", "reaction", "dwell_ms", "training_allowed", "shown_at"):
            assert score[name] == each[name]


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["done", "t"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@on_fixtures
@given(
    rows=st.lists(
        st.dictionaries(st.sampled_from([*ROW, "source", "created_at"]), JUNK), max_size=5
    ),
    bytes_between=st.lists(st.binary(max_size=30), max_size=5),
)
@pytest.mark.parametrize("name", ["junk.jsonl", "junk.csv"])
def test_no_junk_ends_an_ingest(on_sqlite, write, name, rows, bytes_between):
    _forget(on_sqlite)
    lines = [ROW | each for each in rows] + [b"{" + each for each in bytes_between]
    header = [b",".join(key.encode() for key in ROW)] if name.endswith(".csv") else []
    file = write(*header, *lines, name=name)
    counts = take(on_sqlite, file)
    assert counts.came_in == counts.went_out + sum(counts.refused.values())
    assert len(listed(file)) == counts.came_in - counts.went_out - counts.refused.get(SUPERSEDED, 0)


def test_columns_named_otherwise_are_mapped(engine, write):
    renamed = {"id": "t1", "person": "anna", "text": "Take a walk", "ms": "20000"} | {
        name: ROW[name] for name in ("kind", "context_json", "shown_at", "reaction")
    }
    columns = {"tip_id": "id", "user_id": "person", "tip_content": "text", "dwell_ms": "ms"}
    take(engine, _as_csv(write, [renamed]), columns=columns)
    mapped = stored(engine)
    _forget(engine)
    take(engine, write(ROW))
    assert mapped == stored(engine)


def test_a_mapping_of_a_column_we_do_not_have_is_refused(engine, write):
    with pytest.raises(
        ConfigError, match=r"ingest\.columns names reaktion; our columns are tip_id"
    ):
        take(engine, write(ROW), columns={"reaktion": "r"})


def test_csv_keeps_quotes_line_ends_and_leaves_empty_cells_out(engine, write):
    text = 'She said: "Go,\r\nnow"\nand went'
    take(engine, _as_csv(write, [row(1, tip_content=text, reaction="", dwell_ms="")]))
    score = stored(engine)["t1"]
    assert (score["tip_content"], score["reaction"], score["dwell_ms"]) == (text, None, None)


def test_csv_from_a_spreadsheet_begins_with_a_byte_order_mark(engine, write):
    plain = _as_csv(write, [row(1)]).read_bytes().replace(b"\n", b"\r\n")
    file = write(name="bom.csv")
    file.write_bytes(b"\xef\xbb\xbf" + plain)
    assert take(engine, file).went_out == 1


@pytest.mark.parametrize(
    ("spelling", "meaning"),
    [("true", True), ("TRUE", True), ("1", True), ("1.0", True), ("t", True), ("False", False)],
)
def test_csv_spells_truth_in_several_ways(on_sqlite, write, spelling, meaning):
    take(on_sqlite, _as_csv(write, [row(1, training_allowed=spelling)]))
    assert stored(on_sqlite)["t1"]["training_allowed"] is meaning


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b't2,anna,k,"never closed,{},2026-03-04T10:00:00Z,done,1', "not valid CSV"),
        (b't2,anna,k,"closed"early,{},2026-03-04T10:00:00Z,done,1', "not valid CSV"),
        (b"t2,anna", "wrong number of columns"),
        (b"t2,anna,k,tip,{},2026-03-04T10:00:00Z,done,1,more", "wrong number of columns"),
        (b"t2,anna,k,t\xffp,{},2026-03-04T10:00:00Z,done,1", NOT_UTF8),
        (b"t2,anna,k,t\0p,{},2026-03-04T10:00:00Z,done,1", "NUL byte"),
        (b"t2,anna,k,tip,{},2026-03-04T10:00:00Z,done,2 s", "dwell_ms is not a number"),
        (b"t2,anna,k,tip,{},2026-03-04T10:00:00Z,done,-5", "negative dwell_ms"),
        (b"t2,anna,k,,{},2026-03-04T10:00:00Z,done,1", "missing field tip_content"),
        (b"t2,anna,k,tip,{},2026-03-04T10:00:00Z,done,1" + b"x" * 1_600_000, "oversized line"),
    ],
)
def test_a_malformed_csv_row_costs_itself_only(on_sqlite, write, line, reason):
    good = [
        f'{tip},anna,k,"a, ""b""",{{}},2026-03-04T10:00:00Z,done,1'.encode() for tip in ("t1", "t3")
    ]
    file = write(",".join(ROW).encode(), good[0], line, good[1], name="tips.csv")
    take(on_sqlite, file)
    assert listed(file) == [{"file": str(file), "line": 3, "reason": reason}]
    assert stored(on_sqlite).keys() == {"t1", "t3"}


def test_quotes_that_never_close_do_not_make_reading_slow(on_sqlite, write):
    broken = [b'x,"never closed' for _ in range(20_001)]
    file = write(",".join(ROW).encode(), *broken, name="tips.csv")
    began = time.monotonic()
    assert take(on_sqlite, file).went_out == 0
    assert time.monotonic() - began < 20


def test_parquet_times_of_every_resolution_are_read(on_sqlite, write):
    units = ("s", "ms", "us", "ns")
    for number, unit in enumerate(units):
        table = pa.Table.from_pylist([without("shown_at") | {"tip_id": f"t{number}"}])
        times = pa.array([NOON], pa.timestamp(unit, tz="Europe/Berlin"))
        file = write(name=f"{unit}.parquet")
        parquet.write_table(table.append_column("shown_at", times), file)
        assert take(on_sqlite, file).refused == {}
    assert {score["shown_at"] for score in stored(on_sqlite).values()} == {NOON}


GOOD_TIMES = pa.array([NOON], pa.timestamp("us", tz="UTC"))
GOOD_TEXTS = pa.array([NOON.isoformat()])
BAD_UTF8 = pa.StringArray.from_buffers(
    1, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")
)


@pytest.mark.parametrize(
    ("times", "reason"),
    [
        ([GOOD_TIMES, pa.array([2**62], GOOD_TIMES.type), GOOD_TIMES], "unreadable value"),
        ([GOOD_TEXTS, BAD_UTF8, GOOD_TEXTS], NOT_UTF8),
        ([GOOD_TEXTS, pa.array(["2026-03-04T10:00:00"]), GOOD_TEXTS], NAIVE),
    ],
)
def test_a_malformed_parquet_row_costs_itself_only(on_sqlite, write, times, reason):
    table = pa.Table.from_pylist([without("shown_at") | {"tip_id": f"t{n}"} for n in (1, 2, 3)])
    file = write(name="tips.parquet")
    parquet.write_table(table.append_column("shown_at", pa.concat_arrays(times)), file)
    take(on_sqlite, file)
    assert listed(file) == [{"file": str(file), "line": 2, "reason": reason}]
    assert stored(on_sqlite).keys() == {"t1", "t3"}


def test_parquet_times_without_a_zone_are_naive(on_sqlite, write):
    table = pa.Table.from_pylist([ROW | {"shown_at": NOON.replace(tzinfo=None)}])
    file = write(name="tips.parquet")
    parquet.write_table(table, file)
    assert take(on_sqlite, file).refused == {NAIVE: 1}


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_a_file_without_any_of_our_columns_is_one_error_before_anything_is_written(
    on_sqlite, write, tmp_path, kind
):
    other = tmp_path / f"other.{kind}"
    if kind == "parquet":
        parquet.write_table(pa.table({"theirs": [1, 2], "more": [1, 2]}), other)
    else:
        other.write_text("theirs,more\n1,2\n" if kind == "csv" else '{"theirs": 1, "more": 2}\n')
    with pytest.raises(DataError, match=r"no column of tip_id, .*; it has more, theirs; name them"):
        take(on_sqlite, write(ROW), other)
    assert stored(on_sqlite) == {}
    assert take(on_sqlite, other, columns={"kind": "more"}).came_in == kind.count("parquet") + 1


@pytest.mark.parametrize(
    ("separator", "ending"), [(";", "csv"), ("\t", "csv"), ("\t", "tsv"), (",", "tsv")]
)
def test_cells_may_be_separated_otherwise_and_null_be_written_as_postgresql_does(
    on_sqlite, write, separator, ending
):
    cells = ["t1", "anna", "k", "a; b, c", "{}", "2026-03-04 10:00:00+00", r"\N", r"\N", "f"]
    lines = [[*ROW, "training_allowed"], cells]
    quoted = [[f'"{cell}"' if cell == "a; b, c" else cell for cell in line] for line in lines]
    file = write(*(separator.join(line).encode() for line in quoted), name=f"tips.{ending}")
    assert take(on_sqlite, file).refused == {}
    score = stored(on_sqlite)["t1"]
    assert (score["tip_content"], score["shown_at"]) == ("a; b, c", NOON)
    assert (score["reaction"], score["dwell_ms"], score["training_allowed"]) == (None, None, False)


@pytest.mark.parametrize(
    "time",
    [
        "2026-03-04 10:00:00 UTC", "2026-03-04 10:00:00.000000 UTC", "2026-03-04T10:00:00Z[UTC]",
        "2026-03-04T11:00:00+01:00[Europe/Paris]", "2026-03-04 10:00:00 +0000", 1772618400000,
        1772618400, "1772618400000", 1772618400000.0, {"$date": "2026-03-04T10:00:00Z"},
        {"$date": {"$numberLong": "1772618400000"}}, "2026-03-04T10:00:00.000000000Z",
        "2026-03-04t10:00:00z", "2026-03-04 10:00:00 +0000 UTC", "2026-03-04 11:00:00 +0100 CET",
        1772618400000000, "1772618400000000000", "Wed, 04 Mar 2026 10:00:00 GMT",
        "Wed Mar 04 2026 11:00:00 GMT+0100 (Central European Standard Time)",
        "Wed Mar 04 2026 10:00:00 GMT+0000",
    ],
)  # fmt: skip
def test_times_as_other_tools_write_them(on_sqlite, write, time):
    assert take(on_sqlite, write(row(shown_at=time))).refused == {}
    assert stored(on_sqlite)["t1"]["shown_at"] == NOON


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"shown_at": "2026-03-05T10:00:01Z"}, "shown_at more than a day ahead"),
        ({"reacted_at": "2026-03-04T09:59:59Z"}, "reacted_at before created_at"),
        (
            {"created_at": "2026-03-04T09:00:00Z", "reacted_at": "2026-03-04T09:59:59Z"},
            "reacted_at before shown_at",
        ),
        ({"shown_at": "2026-03-04T10:00:00[Europe/Paris]"}, UNPARSABLE),
        ({"shown_at": "03/04/2026 10:00"}, UNPARSABLE),
        ({"shown_at": 20260304}, NAIVE),
        ({"shown_at": True}, UNPARSABLE),
        ({"shown_at": "Wed, 04 Mar 2026 10:00:00 CET"}, UNPARSABLE),
        ({"shown_at": "Wed, 44 Mar 2026 10:00:00 GMT"}, UNPARSABLE),
        ({"shown_at": "Wed Mar 44 2026 10:00:00 GMT+0000"}, UNPARSABLE),
        ({"shown_at": "2026-03-04 10:00:00 CET"}, UNPARSABLE),
    ],
)
def test_a_time_that_cannot_be_or_could_be_misread_refuses_its_row(
    on_sqlite, write, values, reason
):
    assert take(on_sqlite, write(row(**values)), now=NOON).refused == {reason: 1}


@pytest.mark.parametrize("nothing", [None, "", " \t"])
def test_an_empty_text_says_as_little_as_a_null(on_sqlite, write, nothing):
    optional = ("shown_at", "reaction", "dwell_ms", "reacted_at", "source", "cut")
    assert (
        take(
            on_sqlite, write(row(created_at=ROW["shown_at"]) | dict.fromkeys(optional, nothing))
        ).refused
        == {}
    )
    assert [stored(on_sqlite)["t1"][name] for name in optional[:4]] == [None] * 4


@pytest.mark.parametrize(
    "word", ["NULL", "None", "NaN", "nan", "NaT", "NA", "N/A", "<NA>", "[NULL]", " null "]
)
def test_a_tools_word_for_null_is_one_where_no_text_is_expected(on_sqlite, write, word):
    typed = ("shown_at", "reaction", "dwell_ms", "reacted_at", "cut", "training_allowed")
    given = row(created_at=ROW["shown_at"], tip_content=word) | dict.fromkeys(typed, word)
    for file in (write(given), _as_csv(write, [given])):
        assert take(on_sqlite, file).refused == {}
        kept = stored(on_sqlite)["t1"]
        assert [kept[each] for each in typed[:4]] == [None] * 4
        assert kept["tip_content"] == word  # of a text the word may be meant


def test_a_number_may_stand_between_spaces(on_sqlite, write):
    given = row(dwell_ms=" 20000 ")
    for file in (write(given), _as_csv(write, [given])):
        assert take(on_sqlite, file).refused == {}
        assert stored(on_sqlite)["t1"]["dwell_ms"] == 20_000


def test_a_clock_may_be_a_day_ahead(on_sqlite, write):
    soon = (NOON + timedelta(days=1)).isoformat()
    assert take(on_sqlite, write(row(shown_at=soon, reacted_at=soon)), now=NOON).went_out == 1


def test_parquet_of_other_types_is_read(on_sqlite, write):
    names = UUID(int=7)
    table = pa.table(
        {
            "tip_id": pa.array([names.bytes], pa.uuid()),
            "user_id": pa.array([12.0]),
            "kind": pa.array(["k"], pa.string_view()),
            "tip_content": pa.array([b"tip"], pa.binary()),
            "context_json": pa.array([[("story", "rain")]], pa.map_(pa.string(), pa.string_view())),
            "created_at": pa.array([NOON], pa.timestamp("ns", tz="UTC")),
            "reaction": pa.array(["done"]).dictionary_encode(),
            "dwell_ms": pa.array([Decimal("20999.60")], pa.decimal128(12, 2)),
        }
    )
    file = write(name="tips.parquet")
    parquet.write_table(table, file)
    assert take(on_sqlite, file).refused == {}
    ((tip_id, score),) = stored(on_sqlite).items()
    assert (tip_id, score["dwell_ms"], score["created_at"]) == (str(names), 21_000, NOON)
    assert json.loads(score["context_json"]) == {"story": "rain"}
    take(on_sqlite, write(row(2, user_id="12")))
    assert len({score["user_key"] for score in stored(on_sqlite).values()}) == 1
    decimals = pa.table({"tip_id": [Decimal("3"), Decimal("3.5")], "user_id": [1.0, float("nan")]})
    parquet.write_table(decimals, file)
    assert take(on_sqlite, file).refused == {"user_id is not text": 1, "missing field kind": 1}


def test_parquet_without_pyarrow_says_what_to_install(sqlite_url, write):
    create_store(sqlite_url).dispose()
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from pathlib import Path\n"
        "from reactune.data.readers import read\n"
        "list(read(Path(sys.argv[1]), {}, max_line_bytes=9))"
    )
    file = _as_parquet(write, [])
    result = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True)
    assert "tips.parquet: reading Parquet needs pyarrow; run `pip install" in result.stderr


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("absent.jsonl", "absent.jsonl: cannot be read: No such file"),
        ("folder.jsonl", "folder.jsonl: cannot be read: Is a directory"),
        ("tips.xlsx", r"tips\.xlsx: unknown kind of file; the name must end in \.jsonl"),
        ("tips.txt", r"tips\.txt: unknown kind of file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_before_anything_is_written(
    on_sqlite, write, tmp_path, name, problem
):
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "tips.xlsx").touch()
    (tmp_path / "tips.txt").touch()
    with pytest.raises(DataError, match=problem):
        take(on_sqlite, write(ROW), tmp_path / name)
    assert stored(on_sqlite) == {}


# Without a time in it: the name of the test must be the same in every process.
BROKEN_GZIP = gzip.compress(b"x" * 99, mtime=0)[:-12]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("tips.jsonl.gz", b"plain text", r"tips\.jsonl\.gz: is not gzip, as its name says"),
        ("tips.csv.gz", BROKEN_GZIP, r"tips\.csv\.gz: broken after line 0"),
        ("tips.parquet", b"PAR1 no parquet PAR1", r"tips\.parquet: broken Parquet"),
        ("tips.parquet", b"", r"tips\.parquet: broken Parquet"),
        ("tips.csv", b'a,"b\n', r"tips\.csv: line 1 is no CSV header: not valid CSV"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused(on_sqlite, write, name, content, problem):
    file = write(name=name)
    file.write_bytes(content)
    with pytest.raises(DataError, match=problem):
        take(on_sqlite, file)


def test_of_a_file_broken_off_the_whole_batches_before_stay(engine, write):
    rows = [
        row(number, tip_content=random.Random(number).randbytes(99).hex()) for number in range(900)
    ]
    file = write(*rows, name="tips.jsonl.gz")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"tips\.jsonl\.gz: broken after line \d\d\d: "):
        take(engine, file, batch_rows=50)
    assert 100 < len(stored(engine)) < 600
    assert len(stored(engine)) % 50 == 0
    file.write_bytes(whole)
    assert take(engine, file).went_out == 900
    assert {score["tip_content"] for score in stored(engine).values()} == {
        each["tip_content"] for each in rows
    }


def test_the_rejects_are_those_of_the_last_call(engine, write):
    file = write(row(1), row(2, dwell_ms=-1))
    take(engine, file)
    take(engine, file)
    assert len(listed(file)) == 1
    take(engine, write(row(1)))
    assert listed(file) == []


def test_the_rejects_never_overwrite_an_input(engine, write):
    file = write(row(1))
    with pytest.raises(DataError, match="must not be one of the files"):
        take(engine, file, rejects=file.parent / "x" / ".." / file.name)
    assert take(engine, file).went_out == 1


def test_rejects_that_cannot_be_written_are_named(on_sqlite, write):
    file = write(row(1))
    with pytest.raises(DataError, match=r"tips\.jsonl.x: cannot write the rejects file"):
        take(on_sqlite, file, rejects=file / "x")


def test_progress_adds_up_to_the_bytes_of_the_files(on_sqlite, write):
    rows = [row(number) for number in range(40)]
    files = [
        write(*rows),
        write(*rows, name="tips.jsonl.gz"),
        _as_csv(write, rows),
        _as_parquet(write, rows),
    ]
    steps = []
    take(on_sqlite, *files, progress=steps.append, batch_rows=10)
    assert sum(steps) == sum(file.stat().st_size for file in files)
    assert min(steps) >= 0


def test_two_ingests_at_once_give_the_table_of_one(engine, write):
    rows = [row(number, dwell_ms=number) for number in range(2_000)]
    files = [write(*rows), write(*reversed(rows), name="turned.jsonl")]
    errors = []

    def ingest_often(file):
        try:
            for _ in range(3):
                take(engine, file, batch_rows=2_000, rejects=file.with_suffix(".rejects"))
        except DataError as error:
            errors.append(error)

    takers = [threading.Thread(target=ingest_often, args=[file]) for file in files]
    for taker in takers:
        taker.start()
    for taker in takers:
        taker.join()
    assert errors == []
    dwells = {tip_id: score["dwell_ms"] for tip_id, score in stored(engine).items()}
    assert dwells == {each["tip_id"]: each["dwell_ms"] for each in rows}


def test_a_tip_that_two_ingests_bring_at_once_is_one_users(engine, write):
    users = ("anna", "ben")
    rows = [
        [row(n, user_id=user, dwell_ms=at) for n in range(900)] for at, user in enumerate(users)
    ]
    files = [write(*each, name=f"{user}.jsonl") for user, each in zip(users, rows, strict=True)]
    refused = []

    def ingest_one(file):
        counts = take(engine, file, batch_rows=30, rejects=file.with_suffix(".rejects"))
        refused.append(counts.refused.get("tip_id of another user", 0))

    takers = [threading.Thread(target=ingest_one, args=[file]) for file in files]
    for taker in takers:
        taker.start()
    for taker in takers:
        taker.join()
    pairs = {(score["user_key"], score["dwell_ms"]) for score in stored(engine).values()}
    assert len(pairs) <= 2
    assert len({user for user, _ in pairs}) == len(pairs)
    assert sum(refused) == 900


KILLED = """
import sys
from pathlib import Path
from reactune.config.sections import IngestConfig
from reactune.data.ingest import ingest
from reactune.privacy.hashing import HashingKey
from reactune.store.database import open_store
ingest(
    open_store(sys.argv[1]), [Path(sys.argv[2])], settings=IngestConfig(), batch_rows=20,
    key=HashingKey(sys.argv[3].encode()), rejects=Path(sys.argv[4]),
    progress=lambda _: print(flush=True),
)
"""


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_ingest_is_made_whole_by_repeating_it(engine, store_url, write, tmp_path, seed):
    rng = random.Random(seed)
    rows = [
        row(rng.randrange(1_500), tip_content=f"tip {n}", dwell_ms=rng.choice([n, -1]))
        | rng.choice([{}, {"reaction": None}, {"training_allowed": False}])
        for n in range(2_000)
    ]
    file, rejects = write(*rows), tmp_path / "rejects.jsonl"
    left_behind = []
    for _ in range(2):
        command = [sys.executable, "-c", KILLED, store_url, file, KEY.secret.decode(), rejects]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            for _ in range(rng.randint(1, 60)):
                process.stdout.readline()
            time.sleep(rng.random() / 50)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        left_behind.append(len(stored(engine)))
    first = take(engine, file)
    made_whole, listed_then = stored(engine), listed(file)
    _forget(engine)
    assert take(engine, file) == first
    assert stored(engine) == made_whole
    assert listed(file) == listed_then
    assert 0 < left_behind[0] < len(made_whole)


@needs_real
def test_real_reactions_are_taken_as_they_are(engine, tmp_path):
    with gzip.open(REAL, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    counts = take(engine, REAL, rejects=tmp_path / "rejects.jsonl")
    assert (counts.came_in, counts.went_out, counts.refused) == (2_020, 2_020, {})
    scores = stored(engine)
    # From the data's own description: 958 positive, 1,062 negative.
    assert Counter(score["reaction"] for score in scores.values()) == {
        "done": 958,
        "dismiss": 1_062,
    }
    for each in rows:
        score = scores[each["tip_id"]]
        for name in ("kind", "source", "context_json", "tip_content", "reaction", "dwell_ms"):
            assert score[name] == each[name]
        assert score["shown_at"] == datetime.fromisoformat(each["shown_at"])
    assert len({score["user_key"] for score in scores.values()}) == len(
        {each["user_id"] for each in rows}
    )


@needs_real
def test_real_reactions_are_the_same_from_every_kind_of_file(engine, write, tmp_path):
    with gzip.open(REAL, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    tables = []
    for file in (REAL, _as_csv(write, rows), _as_parquet(write, rows)):
        _forget(engine)
        take(engine, file, rejects=tmp_path / "rejects.jsonl")
        tables.append(stored(engine))
    assert tables[0] == tables[1] == tables[2]


def _forget(engine):
    with writing(engine) as connection:
        connection.execute(tip_scores.delete())


def _as_csv(write, rows):
    file = write(name="tips.csv")
    with file.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, list(rows[0]) if rows else list(ROW))
        writer.writeheader()
        for each in rows:
            context = each["context_json"]
            text = context if isinstance(context, str) else json.dumps(context)
            writer.writerow(each | {"context_json": text})
    return file


def _as_parquet(write, rows):
    file = write(name="tips.parquet")
    as_text = [
        each | {"context_json": json.dumps(each["context_json"])}
        if isinstance(each["context_json"], dict)
        else each
        for each in rows
    ]
    parquet.write_table(pa.Table.from_pylist(as_text), file)
    return file


UUID_OF_ANNA = "0189d3ab-77e2-7c41-9d3a-5f00c0ffee01"


@pytest.mark.parametrize(
    ("column", "user_id"),
    [
        (pa.array([7.0], pa.float64()), "7"),
        (pa.array([7], pa.int16()), "7"),
        (pa.array(["7.00"], pa.string()).cast(pa.decimal128(5, 2)), "7"),
        (pa.array([b"u-7"], pa.binary()), "u-7"),
        (pa.array([b"u-7\0\0"], pa.binary(5)), "u-7"),
        (pa.array([UUID(UUID_OF_ANNA).bytes], pa.binary(16)), UUID_OF_ANNA),
        (pa.array([UUID(UUID_OF_ANNA).bytes], pa.uuid()), UUID_OF_ANNA),
        (pa.array([UUID_OF_ANNA.upper()]), UUID_OF_ANNA),
        (pa.array(["u-7   "], pa.large_string()), "u-7"),
        (pa.array(["zoe\u0308"]), "zo\u00eb"),
        (pa.array(["7.0"]), "7.0"),
    ],
    ids=str,
)
def test_an_id_of_any_type_of_parquet_is_the_same_person(on_sqlite, tmp_path, column, user_id):
    columns = {name: [value] for name, value in without("user_id").items()}
    parquet.write_table(pa.table({**columns, "user_id": column}), tmp_path / "rows.parquet")
    assert take(on_sqlite, tmp_path / "rows.parquet").went_out == 1
    expected = hmac.new(KEY.secret, user_id.encode(), hashlib.sha256).hexdigest()
    assert stored(on_sqlite)["t1"]["user_key"] == expected


@pytest.mark.parametrize("value", [True, [7], {"id": 7}, 1e300])
def test_a_value_that_is_no_id_costs_its_row(on_sqlite, write, value):
    file = write(row(1, user_id=value), row(2))
    assert take(on_sqlite, file).refused == {"user_id is not text": 1}


def test_a_tip_that_comes_again_with_another_user_is_refused_and_stays_the_first_ones(
    on_sqlite, write
):
    first = write(
        row(1), row(2, user_id="ben"), row(1, user_id=" anna\n", dwell_ms=9), name="a.jsonl"
    )
    again = [row(1, user_id="ben", tip_content="Mine"), row(3), row(3, user_id="carl"), row(2)]
    second = write(*again, name="b.jsonl")
    counts = take(on_sqlite, first, second, batch_rows=2)
    assert counts.refused == {"tip_id of another user": 3, SUPERSEDED: 1}
    expected = [(1, "line 1 of a.jsonl"), (3, "line 2 of b.jsonl"), (4, "line 2 of a.jsonl")]
    assert [(each["line"], each["reason"]) for each in listed(second)] == [
        (number, f"tip_id of another user: {place}") for number, place in expected
    ]
    rows = stored(on_sqlite)
    assert (rows["t1"]["tip_content"], rows["t1"]["dwell_ms"]) == ("Take a walk", 9)
    before = rows
    assert take(on_sqlite, second).refused == {"tip_id of another user": 3}
    assert {each["reason"] for each in listed(second)} == {"tip_id of another user: already stored"}
    assert stored(on_sqlite) == before


def test_no_user_is_named_where_a_tip_is_anothers(on_sqlite, write):
    file = write(row(1, user_id=SECRET), row(1, user_id="another-secret"))
    take(on_sqlite, file)
    listing = (file.parent / "rejects.jsonl").read_text()
    assert SECRET not in listing
    assert "another-secret" not in listing


def test_a_tip_under_a_key_that_is_not_given_may_be_anybodys(on_sqlite, write):
    file, new = write(row(1)), HashingKey(b"another key of 32 characters or more")
    take(on_sqlite, file)
    counts = ingest(
        on_sqlite, [file], settings=IngestConfig(), key=new, rejects=file.with_name("rejects")
    )
    assert counts.refused == {}
    assert stored(on_sqlite)["t1"]["key_id"] == new.key_id


def allowed(engine):
    return {tip_id: found["training_allowed"] for tip_id, found in stored(engine).items()}


def test_once_a_row_states_consent_a_row_or_file_without_it_is_not_allowed(on_sqlite, write):
    first = write(row(1), row(2, training_allowed=None), name="a.jsonl")
    second = write(row(3, training_allowed="yes"), row(4, training_allowed="f"), name="b.jsonl")
    said = []
    take(on_sqlite, first, second, say=said.append)
    assert allowed(on_sqlite) == {"t1": False, "t2": False, "t3": True, "t4": False}
    assert said == []
    # What was stated of a tip stays when it comes again without it.
    take(on_sqlite, write(row(3, dwell_ms=9), row(5, trainingAllowed=True), name="c.jsonl"))
    assert allowed(on_sqlite) == {"t1": False, "t2": False, "t3": True, "t4": False, "t5": True}


@pytest.mark.parametrize(("verdict", "words"), [("allow", "every row"), ("refuse", "no row")])
def test_files_without_a_column_of_consent_count_as_the_settings_say(
    on_sqlite, write, verdict, words
):
    said = []
    take(on_sqlite, write(row(1)), say=said.append, without_consent=verdict)
    assert allowed(on_sqlite) == {"t1": verdict == "allow"}
    assert said == [f"no file has a column training_allowed: {words} counts as allowed"]


def test_a_near_miss_in_any_row_of_a_file_refuses_the_file(on_sqlite, write):
    file = write(row(1), row(2, training_alowed=False))
    with pytest.raises(DataError, match=r"tips.jsonl: .*training_alowed, which may be meant"):
        take(on_sqlite, file)
    assert stored(on_sqlite) == {}
    with pytest.raises(ConfigError, match="maps reaction to verdict, but there is no such column"):
        take(on_sqlite, write(row(1)), columns={"reaction": "verdict"})
