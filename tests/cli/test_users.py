"""Commands on users and API keys: which options go together, and what is stored."""

import io

import pytest

from cli_fixtures import KEY, row, stored, write_rows
from reactune.privacy.hashing import HashingKey, HashingKeys, hashed_ids

USER = "anna.schmidt"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--user", USER), "--user and --reason go together"),
        (("--reason", "asked"), "--user and --reason go together"),
        (("--user", USER, "--reason", f"mail of {USER}"), "--reason names a user"),
        (("--expired", "--user", USER, "--reason", "asked"), "--expired goes alone"),
        (("--expired", "--reason", "too old"), "--expired goes alone"),
        (("--verify",), "--verify goes with --user"),
        (("--verify", "--user", USER, "--reason", "asked"), "--verify goes with --user"),
        (("--verify", "--user", USER, "--expired"), "--verify goes with --user"),
        (("--user", USER, "--reason", "asked", "--also", "."), "--also goes with --verify"),
        (("--verify", "--user", USER, "--also", "nowhere"), "nowhere"),
        (("--user", USER, "--reason", "asked", "--json"), "--json goes with --verify"),
    ],
)
def test_options_of_erase_that_do_not_fit_change_nothing(call, here, arguments, named):
    code, out, err = call("erase", *arguments)
    assert (code, out) == (2, "")
    assert named in err
    assert list(here.iterdir()) == []


def test_the_message_about_a_reason_does_not_repeat_the_id(call):
    _, _, err = call("erase", "--user", USER, "--reason", f"{USER} asked")
    assert USER not in err


def test_ids_may_come_from_standard_input_and_an_empty_one_is_nobody(call, here, monkeypatch):
    call("init")
    lines = io.BytesIO("\ufeffuser-1\r\n\n user-2 \nzoe\u0308\n".encode())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(lines))
    others = ("--user", "user-3", "--user", "", "--user", "zo\u00eb", "--allow-unknown")
    code, out, _ = call("consent", "refuse", "--user", "-", *others)
    assert (code, out.splitlines()[0]) == (0, "refuse training: 4 users")
    ids = ("user-1", "user-2", "user-3", "zo\u00eb")
    marks = {hashed_ids(HashingKeys(HashingKey(KEY.encode())), each)[0].mark for each in ids}
    known = {mark for (mark,) in stored(here, "SELECT mark FROM consents")}
    assert marks <= known


def test_consent_needs_a_user(call):
    code, _, err = call("consent", "allow")
    assert (code, "--user" in err) == (2, True)


def test_the_last_decision_of_a_user_stands(call, here):
    call("init")
    decisions = "SELECT training_allowed FROM consents"
    call("consent", "refuse", "--user", "user-1")
    assert stored(here, decisions) == [(0,)]
    code, out, _ = call("consent", "allow", "--user", "user-1")
    assert (code, out.splitlines()[0]) == (3, "allow training: 1 users")
    assert stored(here, decisions) == [(1,)]


@pytest.mark.parametrize("command", [("consent", "refuse"), ("erase", "--reason", "asked by mail")])
def test_who_has_no_row_is_recorded_and_the_exit_code_says_so(call, here, command):
    call("init")
    call("ingest", write_rows(here / "rows.jsonl", [row(1)]))
    code, out, _ = call(*command, "--user", "user-2")
    assert (code, out.splitlines()[-1]) == (
        3, "no row of this id is known; it is recorded and holds for rows to come",
    )  # fmt: skip
    assert "user-2" not in out
    assert call(*command, "--user", "user-2", "--allow-unknown")[0] == 0
    code, out, _ = call(*command, "--user", "user-1 ", "--user", "user-2")
    assert (code, out.splitlines()[-1].partition(";")[0]) == (
        3, "no row of this id is known: number 2 of 2",
    )  # fmt: skip
    if command[0] == "consent":
        assert call(*command, "--user", "user-1")[0] == 0
    call("ingest", write_rows(here / "rows.jsonl", [row(2)]))
    rows = stored(here, "SELECT training_allowed FROM tip_scores WHERE tip_id = 'tip-2'")
    assert rows == ([(0,)] if command[0] == "consent" else [])


def test_no_id_of_a_consent_is_stored(call, here):
    call("init")
    call("consent", "refuse", "--user", USER)
    for file in here.glob("reactune.db*"):
        assert USER.encode() not in file.read_bytes()


def test_a_key_is_printed_once_and_only_its_hash_is_kept(call, here):
    call("init")
    code, token, _ = call("keys", "create", "phone app")
    assert code == 0
    secret = token.strip().split("_", 2)[2]
    for file in here.glob("reactune.db*"):
        assert secret.encode() not in file.read_bytes()
    key_id = token.split("_")[1]
    _, listed, _ = call("keys", "list")
    assert listed.split()[:2] == [key_id, "app"]
    assert "valid" in listed
    assert secret not in listed


@pytest.mark.parametrize("arguments", [("create", " "), ("revoke", "00000000")])
def test_a_key_without_a_name_or_of_no_known_id_is_refused(call, here, arguments):
    call("init")
    code, out, err = call("keys", *arguments)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert stored(here, "SELECT count(*) FROM api_keys") == [(0,)]


def test_a_scope_that_is_none_is_refused(call):
    code, _, err = call("keys", "create", "x", "--scope", "admin")
    assert (code, "operator" in err) == (2, True)


def test_without_an_open_erasure_erase_says_that_nothing_waits(call):
    call("init")
    code, out, _ = call("erase")
    assert (code, out) == (0, "nothing is waiting to be erased\n")
