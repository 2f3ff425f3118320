"""Rows between two stages: the same rows give the same bytes, within bounds of memory."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reactune.data.labelled import (
    PREFIX,
    clean_schema,
    in_groups,
    in_memory,
    judged_schema,
    on_disk,
    one_row,
    quoted,
    read_batches,
    refused_schema,
    workspace,
    write_batches,
    write_refused,
)
from reactune.errors import DataError

START = datetime(2026, 3, 1, tzinfo=UTC)


def judged(*rows):
    """A batch of rows, each of which is safe or has a reason."""
    full = [
        {"tip_id": f"t{n}", "user_key": f"u{n}", "created_at": START + timedelta(n), **row}
        for n, row in enumerate(rows)
    ]
    return pa.RecordBatch.from_pylist(full, schema=judged_schema())


def rows_in(batches):
    return [row for batch in batches for row in batch.to_pylist()]


@given(sizes=st.lists(st.integers(0, 7), max_size=8), rows=st.integers(1, 9))
def test_groups_have_the_asked_size_whatever_the_batches(sizes, rows):
    numbers = iter(range(sum(sizes)))
    batches = [
        pa.RecordBatch.from_pydict(
            {"n": pa.array([next(numbers) for _ in range(size)], pa.int64())}
        )
        for size in sizes
    ]
    groups = list(in_groups(batches, rows))
    assert [n for group in groups for n in group["n"].to_pylist()] == list(range(sum(sizes)))
    assert all(group.num_rows == rows for group in groups[:-1])
    assert not groups or 1 <= groups[-1].num_rows <= rows


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_safe_and_refused_rows_are_sorted_out_and_counted(tmp_path, where):
    batches = [
        judged({"label": True, "dropped": True}, {"reason": "incomplete"}),
        judged({"reason": "incomplete", "withheld": True}, {"reason": "foreign"}),
        judged(),
    ]
    kept = (in_memory if where == "memory" else on_disk(tmp_path))(iter(batches))
    assert (kept.rows, kept.withheld, kept.dropped) == (4, 1, 1)
    assert kept.reasons == {"incomplete": 2, "foreign": 1}
    for _ in range(2):  # as often as it is asked for
        assert [row["tip_id"] for row in rows_in(kept.safe)] == ["t0"]
        assert [row["reason"] for row in rows_in(kept.refused)] == [
            "incomplete", "incomplete", "foreign",
        ]  # fmt: skip
    assert all(batch.schema.names == clean_schema().names for batch in kept.safe)
    assert all(batch.schema.names == refused_schema().names for batch in kept.refused)


def test_two_passes_on_disk_do_not_overwrite_each_other(tmp_path):
    keep = on_disk(tmp_path)
    first, second = keep([judged({"label": True})]), keep([judged({}, {"label": False})])
    assert len(rows_in(first.safe)) == 1
    assert len(rows_in(second.safe)) == 2


def test_refused_rows_keep_who_and_why_and_nothing_of_their_texts():
    assert refused_schema().names == ["tip_id", "user_key", "reason", "created_at"]


def test_refused_rows_are_written_sorted_from_several_lists(tmp_path):
    one = judged({"reason": "b"}, {"reason": "a"}).select(refused_schema().names)
    with workspace(tmp_path, memory_gb=0.5) as (connection, _):
        write_refused(connection, ([one], [one.slice(1)]), tmp_path / "refused.parquet")
    table = pq.read_table(tmp_path / "refused.parquet")
    assert [row["tip_id"] for row in table.to_pylist()] == ["t0", "t1", "t1"]
    assert table.schema.names == refused_schema().names


def test_rows_with_one_tip_id_are_written_in_one_order(tmp_path):
    row = {"tip_id": "t", "user_key": "u", "kind": "k", "created_at": START, "label": True}
    rows = [{**row, "tip": tip, "dwell_ms": ms} for tip, ms in (("b", 1), ("a", 2), ("a", 1))]
    batches = [pa.RecordBatch.from_pylist([each], schema=clean_schema()) for each in rows]
    write_batches(batches, tmp_path / "one.parquet")
    write_batches(reversed(batches), tmp_path / "two.parquet")
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    assert [each["tip"] for each in rows_in(read_batches(tmp_path / "one.parquet"))] == [
        "a", "b", "a",
    ]  # fmt: skip


def test_a_workspace_removes_itself_and_what_a_killed_process_left(tmp_path):
    left = tmp_path / f"{PREFIX}killed"
    left.mkdir()
    (left / "spilled").touch()
    with workspace(tmp_path, memory_gb=0.5) as (connection, folder):
        assert not left.exists()
        assert folder.parent == tmp_path
        assert one_row(connection, "SELECT $1 + 1, current_setting('TimeZone')", 41) == (42, "UTC")
    assert list(tmp_path.iterdir()) == []


def test_too_little_memory_is_one_error_with_what_to_do(tmp_path):
    with (
        pytest.raises(DataError, match=r"free disk, or raise data\.memory_gb"),
        workspace(tmp_path, memory_gb=0.001) as (connection, _),
    ):
        connection.execute("SELECT list(range) FROM range(10_000_000)").fetchall()
    assert list(tmp_path.iterdir()) == []


def test_a_quote_in_the_name_of_a_file_does_not_end_the_name(tmp_path):
    file = tmp_path / "it's.parquet"
    write_batches([judged({"label": True}).select(clean_schema().names)], file)
    with workspace(tmp_path, memory_gb=0.5) as (connection, _):
        assert one_row(connection, f"SELECT count(*) FROM {quoted(file)}") == (1,)
