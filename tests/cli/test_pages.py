"""Facts as JSON: what a program reads is what people are told."""

import json

import pytest

from cli_fixtures import row, write_rows


def parsed(call, *arguments):
    code, out, _ = call(*arguments)
    return code, json.loads(out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_before_anything_is_live_the_state_says_so(call, here):
    call("init")
    call("ingest", write_rows(here / "rows.jsonl", [row(number) for number in range(3)]))
    code, state = parsed(call, "status", "--json")
    assert code == 0
    assert state["live"] is None
    assert state["answer"]["answer"] == "There is no model yet."
    assert (state["progress"]["positives"], state["progress"]["need_positives"]) == (3, 500)
    assert state["last_run"] is None
    assert (state["erasures_open"], state["replace_by"]) == (0, {})


def test_the_settings_in_force_are_the_same_as_json(call, here):
    code, settings = parsed(call, "--set", "train.lora_rank=4", "config", "--json")
    assert code == 0
    assert settings["train"]["lora_rank"] == 4
    assert settings["canary"]["ramp"] == [0.1, 0.25, 0.5]


def test_keys_are_listed_without_their_secrets(call, here):
    call("init")
    _, token, _ = call("keys", "create", "Olga", "--scope", "content", "--scope", "read")
    _, (key,) = parsed(call, "keys", "list", "--json")
    assert key["name"] == "Olga"
    assert key["scopes"] == ["content", "read"]
    assert key["revoked_at"] is None
    assert token.strip().rpartition("_")[2] not in json.dumps(key)


def test_what_is_missing_is_a_list(call, here):
    call("init")
    code, findings = parsed(call, "doctor", "--json")
    assert code in (0, 1)
    assert {"name", "state", "text"} == set(findings[0])
    assert ("missing" in {each["state"] for each in findings}) == (code == 1)


def test_a_step_of_a_review_has_no_json(call, here):
    call("init")
    code, _, err = call("review", "compare", "--id", "20261123-101500-0000", "--json")
    assert code == 2
    assert "--json goes with a whole review" in err
