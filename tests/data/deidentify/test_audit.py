import json
import tomllib

import pytest

from reactune.cli import main
from reactune.config.sections import PrivacyConfig
from reactune.config.settings import Config
from reactune.data.deidentify.audit import audit, proposal
from reactune.pii.detectors import open_detector

DETECT = open_detector(PrivacyConfig(models={}))
CITIES = ["Berlin", "Rome", "Hiddensee"]


def contexts(users=30):
    """City shared by 10, 19 and 1 of 30 users; a mail address and a token of each; a note."""
    for user in range(users):
        city = CITIES[(user >= 10) + (user >= 29)]
        context = {
            "time_of_day": "morning" if user % 2 else "evening",
            "user_settings": {"city": city, "steps": 5_000 + user},
            "contact": f"user{user}@example.org",
            "token": f"x{user * 7919}",
            "free_text": f"today I want to finish {user} pages and mail bo@x.org",
        }
        if user == 0:
            context["tags"] = ["a", "b"]
        yield f"u{user}", json.dumps({"v": 1, "context": context} if user % 2 else context)


def reports(**options):
    found = audit(contexts(), detect=DETECT, enough=5, **options)
    return {report.key: report for report in found}


def test_every_key_is_counted_by_rows_values_and_users():
    by_key = reports()
    city, time = by_key["user_settings.city"], by_key["time_of_day"]
    assert (city.rows, city.values, city.users_per_value, city.rare_values) == (1, 3, 10, 1 / 3)
    assert (time.values, time.users_per_value, time.rare_values) == (2, 15, 0)
    assert by_key["tags"].rows == 1 / 30
    assert by_key["contact"].kinds == {"EMAIL": 1.0}


def test_what_identifies_is_left_out_what_is_rare_is_watched_the_rest_is_allowed():
    advice = {key: report.advice for key, report in reports().items()}
    assert advice == {
        "time_of_day": "allow",
        "user_settings.city": "watch",
        "user_settings.steps": "leave out",
        "contact": "leave out",
        "token": "leave out",
        "free_text": "allow",
        "tags": "watch",
    }


def test_names_of_keys_that_may_be_personal_are_not_shown():
    names = ("Anna Schmidt", "a@b.org", "+49 170 1234567", "ask her about it", "x" * 60)
    rows = [(f"u{n}", json.dumps({"friends": {name: 1}})) for n, name in enumerate(names)]
    rows += [(f"u{n}", json.dumps({"friends": {"count": n}, "0170 123 45 67": n})) for n in (0, 9)]
    rows += [(f"u{n}", json.dumps({"much used": n % 2})) for n in range(5)]
    found = {each.key: each for each in audit(rows, detect=DETECT, enough=5)}
    assert set(found) == {"friends.*", "friends.count", "*", "much used"}
    assert (found["friends.*"].values, found["friends.*"].advice) == (1, "leave out")
    text = proposal(list(found.values()), Config(), enough=5)
    assert "friends" in tomllib.loads(text)["prompt"]["context_keys"]
    assert "*" not in text


def test_the_proposal_is_settings_in_the_order_there_is():
    text = proposal(list(reports().values()), Config(), enough=5)
    settings = Config(**tomllib.loads(text))
    assert settings.prompt.context_keys == ("time_of_day", "user_settings", "free_text", "tags")
    assert settings.privacy.rare_keys == ("tags", "user_settings.city", "user_settings.steps")
    assert settings.privacy.min_users_per_value == 5


def test_contexts_that_are_none_are_passed_over():
    assert (
        audit([("u", "no json"), ("u", "[1]"), ("u", "[" * 10_000)], detect=DETECT, enough=2) == []
    )


def test_the_command_shows_keys_and_counts_but_no_value(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REACTUNE_KEY", "k" * 32)
    with (tmp_path / "scores.jsonl").open("w") as file:
        for number, (user, context) in enumerate(contexts()):
            row = {
                "tip_id": f"t{number}", "user_id": user, "kind": "focus", "context_json": context,
                "tip_content": "Walk.", "created_at": "2026-11-01T08:00:00Z", "source": "llm",
                "shown_at": "2026-11-01T08:00:00Z", "reaction": "done", "dwell_ms": 20_000,
            }  # fmt: skip
            file.write(f"{json.dumps(row)}\n")
    for command in (["init"], ["ingest", "scores.jsonl"], ["audit", "--min-users", "5"]):
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "user_settings.city" in out
    assert 'rare_keys = ["tags", "user_settings.city", "user_settings.steps"]' in out
    assert not any(value in out for value in ("Hiddensee", "example.org", "x7919", "pages"))
