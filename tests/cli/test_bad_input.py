"""Every command on every kind of bad input: one clear error, no traceback, nothing half made."""

import contextlib
import gzip
import json
import logging
import os
import re
import socket

import pytest

from cli_fixtures import nobody, row, write_rows
from loop_fixtures import write_settings
from reactune.cli import commands

FILES = {
    "reads.jsonl": (
        ("ingest", "FILE"),
        ("compare", "FILE"),
        ("ope", "FILE", "--target", "new"),
        ("ope", "FILE", "--choice", "choice_json"),
        ("score", "FILE"),
        ("deidentify", "FILE", "--out", "out.jsonl"),
        ("evaluate", "--pairs", "FILE"),
    ),
    "settings.toml": tuple(
        ("--config", "FILE", *arguments)
        for arguments in (("config",), ("status",), ("run",), ("serve",), ("init",))
    ),
}
DEEP = "[" * 20_000
CONTENT = {
    "empty": b"",
    "binary": bytes(range(256)) * 20,
    "zeros": bytes(5_000),
    "bad UTF-8": b'{"tip_content": "caf\xe9", "arm": "a", "reaction": "done"}\n',
    "UTF-16": '{"tip_content": "x"}\n'.encode("utf-16"),
    "a number": b"17\n",
    "a list": b"[1, 2]\n",
    "half a line": b'{"tip_content": "x", "arm": ',
    "deep": b'{"context_json": ' + DEEP.encode() + b"\n",
    "a huge number": b'{"dwell_ms": ' + b"9" * 6_000 + b', "arm": "a", "reaction": "done"}\n',
    "an infinity": b'{"dwell_ms": 1e999, "count": NaN, "arm": "a", "reaction": "done"}\n',
    "half an emoji": b'{"tip_content": "\\ud83d", "arm": "\\ud83d", "reaction": "done"}\n',
    "a NUL": b'{"tip_content": "a\\u0000b", "arm": "\\u0000", "reaction": "done"}\n',
    "two keys of a name": b'{"arm": "a", "arm": "b", "reaction": "done", "reaction": 1}\n',
    "nothing known": b'{"colour": "red"}\n',
    "not packed": b"x",
    "cut off": gzip.compress(json.dumps(row(1)).encode() * 50)[:-20],
}
PACKED = {"not packed", "cut off"}
CERTAIN = {"absent", "a folder", "a pipe", "in a file", "UTF-16", *PACKED}  # no rows in any case
LONG = "n" * 300  # more than a file's name may have


def put(folder, kind, name):
    """A bad file of a kind; its name."""
    if kind == "absent":
        return name
    if kind == "a folder":
        (folder / name).mkdir()
    elif kind == "a dangling link":
        (folder / name).symlink_to("nowhere")
    elif kind == "a pipe":
        os.mkfifo(folder / name)
    elif kind == "a link to itself":
        (folder / name).symlink_to(name)
    elif kind == "a name too long":
        return f"{LONG}{name}"
    elif kind == "in a file":
        (folder / "file").write_text("")
        return f"file/{name}"
    elif kind == "Parquet that is none":
        name = "reads.parquet" if name.endswith("l") and "reads" in name else name
        (folder / name).write_bytes(b"PAR1 nothing PAR1")
    else:
        name += ".gz" if kind in PACKED else ""
        (folder / name).write_bytes(CONTENT[kind])
    return name


def check(code, out, err):
    """Done, or one line of ours, or the usage of a wrong call; never a traceback."""
    assert "Traceback" not in err, err
    assert "Exception ignored" not in err, err
    assert code in (0, 1, 2, 3), (code, out, err)
    said = [line for line in err.splitlines() if line.startswith(("reactune: ", "Error: "))]
    if code == 1:
        assert len(said) == 1, (out, err)
        assert err.splitlines()[-1] == said[0]
    elif code:
        # Wrong usage, rows that were left out, or a comparison that is refused.
        assert len(said) == 1 or re.search("rejected|left out|refused|yet|known", out + err), err


@pytest.mark.parametrize(
    "kind",
    ["absent", "a folder", "a dangling link", "a link to itself", "a pipe", "a name too long",
     "in a file", "Parquet that is none", *CONTENT],
)  # fmt: skip
@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_one_clear_error(call, here, kind, name):
    call("init")
    (here / "reactune.toml").unlink()
    given = put(here, kind, name)
    for arguments in FILES[name]:
        words = [given if word == "FILE" else word for word in arguments]
        code, out, err = call(*words)
        check(code, out, err)
        if code == 1:
            assert not (here / "out.jsonl").exists()
        (here / "out.jsonl").unlink(missing_ok=True)
        if kind in CERTAIN and "score" not in words:
            assert code in (1, 2) or words[-1] == "init" or "evaluate" in words, (words, code)


OUTPUTS = {
    "absent folder": "absent/out",
    "a folder": "folder",
    "in a file": "file/out",
    "in /proc": "/proc/out",
    "a name too long": LONG,
    "in a folder with a name too long": f"{LONG}/out",
    "a link to itself": "loop",
    "read-only": "locked/out",
}

# Folders for reports, pictures and rejected rows are made; a file takes the place of a link.
MENDED = ("absent folder", "a link to itself")


@pytest.mark.parametrize("place", OUTPUTS)
def test_an_output_that_cannot_be_written_is_one_clear_error(call, here, place):
    call("init")
    (here / "folder.jsonl").mkdir()
    (here / "folder.svg").mkdir()
    (here / "file").write_text("")
    for name in ("loop.jsonl", "loop.svg"):
        (here / name).symlink_to(name)
    (here / "locked").mkdir()
    (here / "locked").chmod(0o555)
    write_rows(here / "rows.jsonl", [row(n, arm="ab"[n % 2]) for n in range(8)])
    to = OUTPUTS[place]
    for arguments in (
        ("ingest", "rows.jsonl", "--rejects", f"{to}.jsonl"),
        ("deidentify", "rows.jsonl", "--out", f"{to}.jsonl"),
        ("deidentify", "rows.jsonl", "--out", "fine.jsonl", "--spans", f"{to}.jsonl"),
        ("compare", "rows.jsonl", "--picture", f"{to}.svg"),
        ("plan", "--baseline", "0.3", "--units-per-day", "9", "--tips-per-unit", "1",
         "--picture", f"{to}.svg"),
        ("report", "--out", f"{to}.jsonl"),
        ("--config", f"{to}.jsonl", "init"),
        ("--set", f"store.url=sqlite:///{to}.jsonl", "init"),
    ):  # fmt: skip
        here.chmod(0o777)
        for file in here.glob("reactune.db*"):
            file.chmod(0o666)
        with nobody() if place == "read-only" else contextlib.nullcontext():
            code, out, err = call(*arguments)
        check(code, out, err)
        assert code in (1, 2) or place in MENDED, arguments
    assert place in MENDED or not (here / "fine.jsonl").exists()


@pytest.fixture
def own_logging():
    """What `serve` sets up for its log ends with the test, whose standard error it writes to."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


# Settings that no machine can meet, and commands that read them without a training.
SETTINGS = {
    "store.url": (
        "sqlite:///absent/t.db", "sqlite:////proc/t.db", "sqlite:///.", "sqlite:///junk", "nosuch",
        "postgresql://127.0.0.1:1/none", "postgresql://nohost.invalid/x", "mysql://x/y",
        "postgresql://joe:hunter2@localhost:port/x", "postgresql://", "", "sqlite:///:memory:",
        f"sqlite:///{LONG}.db",
    ),
    "source.url": (
        "absent/*.parquet", "sqlite:///absent.db", "sqlite:///junk", "junk", "nosuch://x", "folder",
        "postgresql://127.0.0.1:1/none", "duckdb://junk", "http://127.0.0.1:1/x.parquet",
        "postgresql://joe:hunter2@localhost:port/x", "mysql://x/y", "file:///absent",
    ),
    "source.table": ("absent", "a.b.c.d", "'; drop"),
    "source.where": ("nocolumn = 1", "((", "1; drop table x"),
    "model.base": ("absent", "folder", "junk", "junk.gguf", "/proc", "nobody/none", LONG),
    "model.cache_dir": ("junk", "/proc/x", LONG),
    "run.root": ("junk", "/proc/x", "nosuch://x", "junk/deep", LONG),
    "registry.tracking_uri": ("sqlite:///absent/m.db", "nosuch://x", "sqlite:///junk", ""),
    "prompt.template": ("absent.jinja", "folder", "junk", LONG),
    "export.converter": ("absent.py", "folder", LONG),
    "export.quantiser": ("absent", "folder"),
    "serve.host": ("nohost.invalid", "256.1.1.1", ""),
    "serve.port": ("99999", "x"),
    "serve.ollama_url": ("http://127.0.0.1:1", "nonsense", "ftp://x"),
    "privacy.key_env": ("ABSENT", ""),
    "privacy.models": ("{en='absent'}", "5"),
    "ingest.columns": ("{tip_id='nope'}", "tip"),
    "train.lora_rank": ("many", "0", "1.5"),
    "labels.positive_dwell_ms": ("[5,1]", "x"),
    "canary.share": ("5",),
    "dataset.split": ("[1,2]",),
}  # fmt: skip
READING = (
    ("init",), ("config",), ("status",), ("ingest", "rows.jsonl"), ("explain",), ("audit",),
    ("erase", "--user", "user-1", "--reason", "asked", "--allow-unknown"), ("erase", "--expired"),
    ("erase", "--verify", "--user", "user-1"), ("consent", "refuse", "--user", "user-1"),
    ("deploy",), ("review",), ("plan",), ("report",), ("keys", "list"), ("keys", "create", "x"),
    ("score", "texts.jsonl"), ("evaluate", "--pairs", "pairs.jsonl"), ("promote",), ("rollback",),
    ("rollback", "--now"), ("stage", "extract", "--run", "20260101-000000-abcd"), ("doctor",),
    ("deidentify", "texts.jsonl", "--out", "o.jsonl"), ("serve",), ("run",),
)  # fmt: skip


def bad_setting(call, here, key, value, commands_of):
    """Every command with one bad setting, in an installation of the tiny model."""
    (here / "junk").write_bytes(b"junk" * 2_000)
    (here / "junk.gguf").write_bytes(b"GGUFjunk" * 2_000)
    (here / "folder").mkdir()
    write_rows(here / "rows.jsonl", [row(number) for number in range(3)])
    write_rows(here / "texts.jsonl", [{"kind": "focus", "context": {}, "tip_content": "x"}])
    pair = {"kind": "focus", "context": {}, "chosen": "a", "rejected": "b"}
    write_rows(here / "pairs.jsonl", [pair])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        # Where the setting does not matter to `serve`, it ends all the same.
        write_settings(here, serve={"port": taken.getsockname()[1]})
        assert call("init")[0] == 0
        for arguments in commands_of:
            code, out, err = call("--set", f"{key}={value}", *arguments)
            if arguments != ("doctor",):  # which has a line for each finding, and exit code 1
                check(code, out, err)
            assert "Traceback" not in err, err
            assert "hunter2" not in out + err


@pytest.mark.parametrize("key", ["store.url", "source.table", "run.root", "prompt.template"])
def test_a_setting_that_cannot_be_met_is_one_clear_error(call, here, key):
    bad_setting(call, here, key, SETTINGS[key][0], READING[1:6])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in SETTINGS.items() for value in values]
)
@pytest.mark.usefixtures("own_logging")
def test_no_command_has_a_traceback_for_any_setting(call, here, key, value):
    bad_setting(call, here, key, value, READING)


def test_every_command_is_called_here():
    called = {word for words in (*READING, *sum(FILES.values(), ())) for word in words}
    # `demo` and `watch` have no input of their own; `completion` and `backend` read no setting.
    assert set(commands.commands) - called == {"backend", "completion", "demo", "watch"}
