from datetime import timedelta

import pytest

from reactune.config.sections import LabelConfig, ServeConfig
from reactune.privacy.hashing import user_key
from reactune.records import Prompt, canonical_json
from reactune.service.answers import judge_text
from reactune.service.state import close_service
from reactune.service.tips import request_tip
from reactune.store.database import create_store, writing
from reactune.store.queries import upsert_scores
from serving_fixtures import KEY, MORNING, NOON, fails, service_of, set_champion

SETTINGS = ServeConfig(max_tip_chars=80, unsafe_texts=("Skip your Medicine", "gun"))


def prompt_of(**context):
    return Prompt(
        kind="focus",
        context_json=canonical_json({"v": 1, "context": context}),
        text="The office is open, call 555-0100-200 or go there.",
        token_ids=(),
        placeholders={"<EMAIL_1>": "anna@example.com"},
        context=context,
    )


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Water the plants before nine.", "passed"),
        ("Write to <EMAIL_1> now.", "passed"),
        ("", "empty"),
        ("word " * 15, "repeated"),
        ("x" * 81, "overlong"),
        ("Write to <EMAIL_2>.", "placeholder"),
        ("Write to <PERSON.", "placeholder"),
        ("Write to bob@example.org.", "personal data"),
        ("Pay to 4111 1111 1111 1111.", "personal data"),
        ("Call 555-0100-200.", "passed"),
        ("Call 555-0100-999.", "personal data"),
        ("Take it easy and skip   your MEDICINE today.", "unsafe"),
        ("Ask a gunner.", "passed"),
        ("Bring a gun.", "unsafe"),
        ("Go out. Go out. Go out.", "repeated"),
        ("call the bank, call the bank", "passed"),
        ("Take a WALK now!", "repeated"),
        ("half a \ud83d", "garbled"),
        ("a \0 in it", "garbled"),
    ],
)
def test_the_guard_says_what_is_wrong_with_a_text(text, verdict):
    recent = prompt_of(recent_tips=["Take a walk now.", "Breathe."])
    assert judge_text(text, recent, SETTINGS) == verdict


def test_without_a_list_nothing_is_unsafe_and_without_recent_tips_nothing_said_before():
    assert judge_text("Bring a gun.", prompt_of(), ServeConfig()) == "passed"
    assert judge_text("Take a walk now.", prompt_of(), ServeConfig()) == "passed"


@pytest.mark.parametrize("source", ["coach", "llm"])
def test_a_tip_is_shown_again_only_if_it_comes_from_the_source_that_labels_name(
    sqlite_url, chat, server, source
):
    engine = create_store(sqlite_url)
    set_champion(engine)
    with writing(engine) as connection:
        liked = {
            "user_key": user_key(KEY, "ann"),
            "key_id": KEY.key_id,
            "kind": "focus",
            "context_json": "{}",
            "created_at": NOON,
            "reaction": "done",
            "dwell_ms": 20_000,
        }
        rows = [
            {**liked, "tip_id": each, "source": each, "tip_content": f"A tip of {each}.",
             "reacted_at": NOON + timedelta(minutes=place)}
            for place, each in enumerate(["llm", "coach", "rule"])
        ]  # fmt: skip
        upsert_scores(connection, rows)
    server.answers[1] = fails
    service = service_of(engine, chat, server, labels=LabelConfig(source=source))
    shown = {
        request_tip(service, user_id="ann", kind="focus", context=MORNING).content for _ in range(3)
    }
    close_service(service)
    engine.dispose()
    assert shown == {f"A tip of {source}."}
