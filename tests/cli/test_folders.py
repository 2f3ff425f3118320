"""Commands in folders whose names mean something to a shell, a URL, a pattern, TOML or SQL."""

import pyarrow as pa
import pytest
from pyarrow import parquet

from cli_fixtures import row, stored, write_rows

NAMES = [
    'it\'s "100%25", #1 of what?',
    "[draft] {x}* $HOME & co;",
    "-v user:secret@host gr\u00fc\u00dfe \U0001f331",
]


@pytest.fixture(params=NAMES)
def odd(here, request, monkeypatch):
    """A current folder of this name."""
    folder = here / request.param
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_the_daily_commands_work_in_a_folder_of_any_name(call, odd):
    assert call("init")[0] == 0
    rows = [row(number, user_id=f"user-{number % 3}") for number in range(9)]
    for expected, *command in (
        (0, "ingest", write_rows(odd / "rows.jsonl", rows)),
        (0, "status"),
        (0, "audit"),
        (0, "explain"),
        (0, "config"),
        (0, "keys", "create", "app"),
        (0, "keys", "list"),
        (0, "report", "--out", odd / "report.html"),
        (3, "erase", "--verify", "--user", "user-1"),  # the database is searched
        (0, "erase", "--user", "user-1", "--reason", "asked"),
        (0, "erase", "--verify", "--user", "user-1"),
    ):
        code, _, err = call(*command)
        assert code == expected, (command, err)
        assert "Traceback" not in err
    assert stored(odd, "SELECT count(*) FROM tip_scores") == [(6,)]
    assert [path.name for path in odd.parent.iterdir()] == [odd.name]


@pytest.mark.filterwarnings("ignore:.*deprecated, use to_arrow:DeprecationWarning")
def test_files_of_a_folder_of_any_name_are_read(call, odd):
    call("init")
    scores = odd / "scores" / odd.name
    scores.mkdir(parents=True)
    rows = [{**row(number), "user_key": "7" * 64, "source": "llm"} for number in range(7)]
    parquet.write_table(pa.Table.from_pylist(rows), scores / "part.parquet")
    for url in ("parquet://scores", f"parquet://{scores}", f"parquet://{scores}/part.parquet",
                "parquet://scores/*/*.parquet"):  # fmt: skip
        code, out, err = call("--set", f"source.url={url}", "status")
        assert code == 0, (url, err)
        assert "7" in out
