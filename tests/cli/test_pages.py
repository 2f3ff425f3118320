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


def test_the_sql_of_labels_is_told_with_what_leaves_the_database(call, here):
    url = "source.url=postgresql://reader:secret@db/app"
    elsewhere = ("--set", url, "--set", "source.table=nudges")
    code, facts = parsed(call, *elsewhere, "explain", "--json")
    assert code == 0
    assert (facts["url"], facts["table"]) == ("postgresql://reader:***@db/app", "nudges")
    assert "BETWEEN 15000 AND 120000" in facts["sql"]
    assert {"tip_content", "context_json", "user_key"} <= set(facts["columns"])


def test_context_keys_and_the_proposed_settings_hold_no_value(call, here):
    call("init")
    rows = [
        row(number, context_json=json.dumps({"time_of_day": "morning", "city": f"Place{number}"}))
        for number in range(12)
    ]
    call("ingest", write_rows(here / "rows.jsonl", rows))
    code, facts = parsed(call, "audit", "--json")
    keys = {each["key"]: each for each in facts["keys"]}
    assert code == 0
    assert (keys["time_of_day"]["values"], keys["time_of_day"]["users_per_value"]) == (1, 12)
    assert (keys["city"]["values"], keys["city"]["advice"]) == (12, "leave out")
    assert facts["settings"] == {"prompt": {"context_keys": ["time_of_day"]}}
    assert "morning" not in json.dumps(facts)
    assert "Place" not in json.dumps(facts)


def test_without_contexts_no_settings_are_proposed(call, here):
    call("init")
    assert parsed(call, "audit", "--json") == (0, {"keys": [], "settings": {}})


def test_a_comparison_has_counts_bounds_and_the_exit_code_of_its_lines(call, here):
    rows = [
        {"arm": arm, "reaction": "done" if number < done else "dismiss", "user": f"{arm}-{number}"}
        for arm, done in (("champion", 200), ("challenger", 320))
        for number in range(400)
    ]
    file = write_rows(here / "rows.jsonl", rows)
    code, (trial,) = parsed(call, "compare", file, "--unit", "user", "--json")
    (found,) = trial["contrasts"]
    assert (code, trial["refusal"], found["finding"]) == (0, "", "better")
    assert (found["champion"]["tips"], found["champion"]["positives"]) == (400, 200)
    assert (found["arm"]["name"], found["arm"]["rate"]) == ("challenger", 0.8)
    assert found["difference"] == pytest.approx(0.3)
    assert 0 < found["low"] < 0.3 < found["high"]
    skewed = write_rows(here / "skewed.jsonl", [*rows[:100], *rows[400:]])
    code, (refused,) = parsed(call, "compare", skewed, "--unit", "user", "--json")
    assert (code, refused["contrasts"]) == (3, [])
    assert refused["refusal"].startswith("refused: ")


def test_a_plan_has_tips_and_days_of_each_way(call, here):
    given = ("--baseline", "0.2", "--units-per-day", "500", "--tips-per-unit", "1.5")
    code, facts = parsed(call, "plan", *given, "--json")
    assert code == 0
    assert (facts["traffic"]["baseline"], facts["lift"]) == (0.2, 0.03)
    assert len(facts["options"]) == 5
    for each in facts["options"]:
        assert each["days"] == pytest.approx(each["units"] / 500)
        assert 0 < each["likely_days"] < each["days"]
    assert f"canary.planned_units = {facts['planned_units']}" in call("plan", *given)[1]


def test_days_of_a_plan_are_null_where_no_traffic_is_known(call, here):
    _, facts = parsed(call, "plan", "--baseline", "0.2", "--json")
    assert facts["traffic"]["units_per_day"] is None
    assert [each["days"] for each in facts["options"]] == [None] * 5


def test_policies_are_ranked_and_a_log_too_small_ends_with_3(call, here):
    rows = [
        {"reward": number % 2, "propensity": 0.5, "same": 0.5, "good": 0.2 + 0.6 * (number % 2)}
        for number in range(2_000)
    ]
    log = write_rows(here / "log.jsonl", rows)
    targets = ("--target", "same", "--target", "good")
    code, facts = parsed(call, "ope", log, *targets, "--json")
    assert (code, facts["ranked"]) == (0, ["good", "same"])
    assert facts["policies"]["same"]["ips"]["value"] == pytest.approx(0.5)
    assert facts["policies"]["good"]["ips"]["value"] == pytest.approx(0.8)
    few = write_rows(here / "few.jsonl", rows[:20])
    code, facts = parsed(call, "ope", few, *targets, "--json")
    assert (code, facts["ranked"]) == (3, [])
    assert {each["conclusion"] for each in facts["policies"].values()} == {"unknown"}
