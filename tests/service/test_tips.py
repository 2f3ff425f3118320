import contextlib
import json
import logging
import random
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reactune.canary.routing import route
from reactune.config.sections import LabelConfig, ModelConfig, PromptConfig, ServeConfig
from reactune.errors import CanaryError, DataError, ReleaseError
from reactune.model.files import base_model
from reactune.model.prompt import load_chat, rebuild, write_prompt_folder
from reactune.pii.spans import PLACEHOLDER
from reactune.privacy.hashing import user_key
from reactune.release.llamacpp import stop
from reactune.release.runtimes import connect
from reactune.service import state
from reactune.service.events import delete_expired_reactions, match_early_reactions
from reactune.service.state import check_ready, close_service
from reactune.service.tips import CHAMPION_TRIES, UnknownTipError
from reactune.store.database import create_store, writing
from reactune.store.queries import upsert_scores
from reactune.store.schema import tip_scores
from serving_fixtures import (
    KEY,
    MORNING,
    NOON,
    PROMPTS,
    QUICK,
    Hanging,
    ask,
    breaks,
    cut,
    fails,
    react,
    report_shown,
    request_tip,
    rows_of,
    service_of,
    set_challenger,
    set_champion,
    users_on,
    version,
)
from template_fixtures import family_folder


def test_without_a_challenger_the_champion_answers_everybody_and_the_row_is_complete(
    engine, service, chat
):
    live = set_champion(engine)
    tip = ask(service)
    assert tip.content == "Champion's tip."
    [row] = rows_of(engine)
    sampling = json.loads(row.pop("sampling_json"))
    assert sampling.pop("seed") in range(2**31)
    assert sampling == {"temperature": 0.7, "top_p": 0.95, "max_tokens": 64, "logprob": -1.5}
    prompt = rebuild(chat, "focus", row.pop("context_json"))
    assert "water the plants" in prompt.text
    assert row.pop("answer_ms") >= 0
    person = user_key(KEY, "person-1@example.org")
    assert row == {
        "tip_id": tip.tip_id,
        "user_key": person,
        "key_id": KEY.key_id,
        "kind": "focus",
        "source": "llm",
        "tip_content": "Champion's tip.",
        "model_version": 1,
        "arm": "champion",
        "rollout_id": live.rollout_id,
        "unit_key": f"2026-03-04:{person[:16]}",
        "propensity": 1.0,
        "fallback": None,
        "created_at": NOON,
        "shown_at": None,
        "reaction": None,
        "dwell_ms": None,
        "reacted_at": None,
        "training_allowed": True,
        "guard": "passed",
        "cut": False,
        "choice_json": None,
        "choice_chance": None,
    }


def test_arms_and_propensities_are_those_of_the_routing(engine, service):
    set_champion(engine)
    opened = set_challenger(engine, share=0.3)
    for number in range(60):
        ask(service, f"user {number}")
    rows = rows_of(engine)
    assert len(rows) == 60
    for row in rows:
        assert row["unit_key"] == f"2026-03-04:{row['user_key'][:16]}"
        assert row["arm"] == route(row["unit_key"], salt="salt of the test", share=0.3)
        assert row["propensity"] == pytest.approx({"challenger": 0.3, "champion": 0.7}[row["arm"]])
        assert row["model_version"] == {"challenger": 2, "champion": 1}[row["arm"]]
        assert (row["rollout_id"], row["fallback"]) == (opened.rollout_id, None)
    assert 5 < Counter(row["arm"] for row in rows)["challenger"] < 31


def test_when_tips_are_routed_one_by_one_a_user_meets_both_models(engine, service):
    set_champion(engine)
    set_challenger(engine, unit="tip")
    for _ in range(30):
        ask(service)
    rows = rows_of(engine)
    assert {row["arm"] for row in rows} == {"champion", "challenger"}
    assert all(row["unit_key"] == row["tip_id"] for row in rows)
    assert all(
        row["arm"] == route(row["tip_id"], salt="salt of the test", share=0.5) for row in rows
    )


def test_a_user_stays_on_one_model_all_day_and_is_assigned_again_the_next_day(
    engine, chat, server, opened
):
    now = [NOON.replace(hour=0)]
    service = service_of(engine, chat, server, clock=lambda: now[0])
    for hour in range(24 * 12):
        now[0] = NOON.replace(hour=0) + timedelta(hours=hour)
        ask(service)
    days = {}
    for row in rows_of(engine):
        days.setdefault(row["created_at"].date(), set()).add(row["arm"])
    assert len(days) == 12
    assert all(len(arms) == 1 for arms in days.values())
    assert {arm for arms in days.values() for arm in arms} == {"champion", "challenger"}
    close_service(service)


@pytest.mark.parametrize(
    ("challenger", "reason"),
    [
        (fails, "error"),
        (breaks, "error"),
        ("", "blocked"),
        (" \n ", "blocked"),
        ("Call <PERSON_7>.", "blocked"),
        ("Call <PERSON", "blocked"),
        ("Half a \ud83d", "blocked"),
        ("A \0 in it", "blocked"),
    ],
)
def test_after_a_challenger_that_fails_the_champion_answers_and_the_exposure_has_the_reason(
    engine, service, server, opened, challenger, reason, caplog
):
    server.answers[2] = challenger
    user = next(users_on("challenger", opened))
    assert ask(service, user).content == "Champion's tip."
    [row] = rows_of(engine)
    assert (row["arm"], row["propensity"]) == ("challenger", 0.5)
    assert (row["model_version"], row["fallback"]) == (1, reason)
    assert row["tip_content"] == "Champion's tip."
    assert "water the plants" not in caplog.text


def test_a_challenger_that_hangs_is_answered_by_the_champion_in_time(
    engine, service, server, opened
):
    server.answers[2] = hanging = Hanging()
    started = time.monotonic()
    assert ask(service, next(users_on("challenger", opened))).content == "Champion's tip."
    waited = time.monotonic() - started
    hanging.let_go.set()
    [row] = rows_of(engine)
    assert QUICK.timeout_seconds <= waited < QUICK.timeout_seconds + 2
    assert (row["arm"], row["model_version"], row["fallback"]) == ("challenger", 1, "timeout")
    assert row["answer_ms"] >= 1000 * QUICK.timeout_seconds


def test_a_limit_of_the_server_that_runs_out_with_ours_is_a_timeout_not_an_error(
    engine, service, server, opened
):
    def gives_up(prompt, sampling):
        time.sleep(QUICK.timeout_seconds)
        raise ReleaseError("too slow")

    server.answers[2] = gives_up
    users = users_on("challenger", opened)
    for _ in range(10):
        ask(service, next(users))
    assert {row["fallback"] for row in rows_of(engine)} == {"timeout"}


def test_more_hanging_requests_at_once_still_end_with_the_champion(engine, service, server, opened):
    server.answers[2] = hanging = Hanging()
    users = users_on("challenger", opened)
    asked = [next(users) for _ in range(52)]
    with ThreadPoolExecutor(len(asked)) as pool:
        tips = list(pool.map(lambda user: ask(service, user), asked))
    server.answers[2] = "Challenger's tip."
    hanging.let_go.set()
    assert {tip.content for tip in tips} == {"Champion's tip."}
    assert Counter(row["fallback"] for row in rows_of(engine)) == {"timeout": len(asked)}
    assert ask(service, next(users)).content == "Challenger's tip."


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_when_the_champion_fails_too_there_is_no_tip_and_no_row(engine, service, server, share):
    set_champion(engine)
    user = "person-1@example.org"
    if share:
        user = next(users_on("challenger", set_challenger(engine, share=share)))
    server.answers = {1: fails, 2: fails}
    with pytest.raises(ReleaseError, match="version 1, the champion, does not answer") as caught:
        ask(service, user)
    assert "plants" not in str(caught.value)
    assert rows_of(engine) == []


def test_a_champion_that_writes_the_unshowable_draws_again_and_logs_the_seed_that_wrote(
    engine, service, server
):
    set_champion(engine)
    seeds = []

    def clumsy(prompt, sampling):
        seeds.append(sampling.seed)
        return "Call <EMAIL_3>." if len(seeds) < CHAMPION_TRIES else "Call now."

    server.answers[1] = clumsy
    assert ask(service).content == "Call now."
    [row] = rows_of(engine)
    assert len(set(seeds)) == CHAMPION_TRIES
    assert json.loads(row["sampling_json"])["seed"] == seeds[-1]
    assert row["fallback"] is None


def test_without_a_text_that_passes_the_guard_there_is_no_tip(engine, service, server):
    set_champion(engine)
    server.answers[1] = "<PERSON_9>"
    with pytest.raises(CanaryError, match="cannot be shown"):
        ask(service)
    assert rows_of(engine) == []


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


def test_the_user_reads_the_address_and_the_row_holds_the_placeholder(engine, service, server):
    set_champion(engine)
    seen = []

    def writes_back(prompt, sampling):
        seen.append(prompt)
        return "Write to <EMAIL_1>, then call <PERSON_1>. "

    server.answers[1] = writes_back
    context = {"free_text": "Anna waits for mail to anna@example.com", "secret": "not allowed"}
    tip = ask(service, context=context, names=["Anna"])
    assert tip.content == "Write to anna@example.com, then call Anna."
    [row] = rows_of(engine)
    assert row["tip_content"] == "Write to <EMAIL_1>, then call <PERSON_1>."
    assert json.loads(row["context_json"])["context"] == {
        "free_text": "<PERSON_1> waits for mail to <EMAIL_1>"
    }
    assert "<PERSON_1> waits" in seen[0]
    assert "Anna" not in seen[0]


def test_placeholders_of_one_request_do_not_fill_another(engine, service, server):
    set_champion(engine)
    server.answers[1] = "Write to <EMAIL_1>."
    assert "a@example.com" in ask(service, context={"free_text": "a@example.com"}).content
    with pytest.raises(CanaryError):
        ask(service, context={"free_text": "no address"})


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    text=st.lists(
        st.sampled_from(
            ["<EMAIL_1>", "<EMAIL_2>", "<person_1>", "<", "EMAIL", "_1", ">", " ", "\0"]
        )
        | st.text(st.characters(codec=None), max_size=5)
    ).map("".join)
)
def test_whatever_a_model_writes_is_shown_whole_and_stored_as_written_or_not_at_all(
    engine, service, server, text
):
    with contextlib.suppress(CanaryError):
        set_champion(engine)
    server.answers[1] = text
    before = len(rows_of(engine))
    try:
        tip = ask(service, context={"free_text": "to anna@example.com"})
    except CanaryError:
        assert len(rows_of(engine)) == before
        return
    [row] = [row for row in rows_of(engine) if row["tip_id"] == tip.tip_id]
    assert row["tip_content"] == text.strip() != ""
    assert tip.content == text.strip().replace("<EMAIL_1>", "anna@example.com")
    assert not PLACEHOLDER.search(tip.content)


def test_of_an_answer_that_was_cut_the_whole_sentences_are_shown_and_the_row_says_so(
    engine, service, server
):
    set_champion(engine)
    server.answers[1] = cut("Drink water. Then go ou")
    tip = ask(service, tip_id="0123456789abcdef")
    assert (tip.content, tip.cut) == ("Drink water.", True)
    [row] = rows_of(engine)
    assert (row["tip_content"], row["cut"], row["guard"]) == ("Drink water.", True, "passed")
    assert "logprob" not in json.loads(row["sampling_json"])  # it would be of the whole answer
    again = ask(service, tip_id="0123456789abcdef")
    assert (again.content, again.cut) == ("Drink water.", True)


def test_half_a_sentence_is_never_shown(engine, service, server):
    set_champion(engine)
    drawn = iter([cut("Drink wat"), cut("Then go ou"), lambda *_: "Go out."])
    server.answers[1] = lambda prompt, sampling: next(drawn)(prompt, sampling)
    assert ask(service).content == "Go out."
    [row] = rows_of(engine)
    assert (row["cut"], row["guard"]) == (False, "cut,cut,passed")


def test_a_challenger_that_is_cut_may_try_once_more(engine, chat, server):
    settings = ServeConfig(on_cut="retry")
    service = service_of(engine, chat, server, settings=settings)
    set_champion(engine)
    user = next(users_on("challenger", set_challenger(engine)))
    drawn = iter([cut("Drink water. Then"), lambda *_: "Go out.", *[cut("Drink. Th")] * 2])
    server.answers[2] = lambda prompt, sampling: next(drawn)(prompt, sampling)
    assert ask(service, user).content == "Go out."
    assert ask(service, user).content == "Champion's tip."
    first, second = rows_of(engine)
    assert (first["guard"], first["fallback"], first["cut"]) == ("cut,passed", None, False)
    assert (second["guard"], second["fallback"]) == ("cut,cut,passed", "blocked")
    close_service(service)


def test_each_version_reads_the_prompt_of_its_own_template_and_day(engine, chat, server, tmp_path):
    models = []
    for number, (family, day) in enumerate(
        [("llama-3.2", "2026-01-02"), ("smollm3", "2026-02-03")], 1
    ):
        folder = family_folder(tmp_path / family, family)
        settings = PROMPTS.model_copy(update={"date": day})
        prompts = tmp_path / f"{number}"
        write_prompt_folder(load_chat(folder, settings), folder, prompts)
        models.append(replace(version(number), prompt_folder=prompts))
    service = service_of(engine, load_chat(models[0].prompt_folder, PROMPTS), server)
    set_champion(engine, models[0])
    user = next(users_on("challenger", set_challenger(engine, models[1])))
    read = {}

    def answer_of(number):
        def answer(prompt, sampling):
            read[number] = prompt
            return "Take a walk <|im_end|>." if number == 2 else "Go out."

        return answer

    server.answers = {1: answer_of(1), 2: answer_of(2)}
    assert ask(service, user).content == "Go out."
    assert "Today Date: 02 Jan 2026" in read[1]
    assert read[2].startswith("<|im_start|>system\n## Metadata")
    assert "Today Date: 03 February 2026" in read[2]
    assert read[2].endswith("<think>\n\n</think>\n")
    [row] = rows_of(engine)
    assert (row["model_version"], row["guard"]) == (1, "special token,passed")
    close_service(service)


def test_neither_user_ids_nor_personal_data_reach_the_database_or_the_logs(
    store_url, engine, service, server, opened, caplog
):
    caplog.set_level(logging.DEBUG)
    users = [next(users_on(arm, opened)) for arm in ("champion", "challenger")]
    context = {"free_text": "mail anna@example.com about 4111 1111 1111 1111", "ssn": "078-05-1120"}
    server.answers = {1: "Mail <EMAIL_1> about <CARD_1>.", 2: fails}
    for user in users:
        tip = ask(service, user, context=context, names=["Bartholomew"])
        report_shown(service, tip.tip_id)
        react(service, tip.tip_id, "done", 20_000)
    engine.dispose()
    written = _bytes_of(store_url) + caplog.text.encode()
    assert user_key(KEY, users[0]).encode() in written
    for private in (*users, "anna@", "4111", "078-05", "Bartholomew", "k" * 32):
        assert private.encode() not in written


def _bytes_of(store_url):
    if store_url.startswith("sqlite"):
        file = Path(store_url.removeprefix("sqlite:///"))
        return b"".join(part.read_bytes() for part in file.parent.glob(f"{file.name}*"))
    engine = sa.create_engine(store_url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        tables = sa.inspect(connection).get_table_names()
        rows = [
            str(row)
            for table in tables
            for row in connection.exec_driver_sql(f"SELECT * FROM {table}")
        ]
    engine.dispose()
    return "\n".join(rows).encode()


def test_two_hundred_requests_at_once_lose_and_double_no_row(engine, service, opened):
    with ThreadPoolExecutor(50) as pool:
        tips = list(pool.map(lambda number: ask(service, f"user {number}"), range(200)))
    rows = {row["tip_id"]: row for row in rows_of(engine)}
    assert len(rows) == 200
    assert {tip.tip_id for tip in tips} == rows.keys()
    assert all(rows[tip.tip_id]["tip_content"] == tip.content for tip in tips)
    assert len({row["user_key"] for row in rows.values()}) == 200


def test_the_row_is_on_disk_when_the_answer_arrives(engine, service, opened, store_url):
    tip = ask(service)
    other = sa.create_engine(engine.url)
    assert [row["tip_id"] for row in rows_of(other)] == [tip.tip_id]
    other.dispose()


def test_of_two_shown_calls_the_first_stands(engine, chat, server):
    set_champion(engine)
    now = [NOON]
    service = service_of(engine, chat, server, clock=lambda: now[0])
    tip = ask(service)
    for minutes in (1, 2):
        now[0] = NOON.astimezone(timezone(timedelta(hours=5))) + timedelta(minutes=minutes)
        report_shown(service, tip.tip_id)
    assert rows_of(engine)[0]["shown_at"] == NOON + timedelta(minutes=1)
    close_service(service)


def test_a_later_reaction_rewrites_the_former_and_a_repeated_one_changes_nothing(
    engine, chat, server
):
    set_champion(engine)
    now = [NOON]
    service = service_of(engine, chat, server, clock=lambda: now[0])
    tip, other = ask(service), ask(service)

    def react_at(minutes, reaction, dwell_ms):
        now[0] = NOON.astimezone(timezone(timedelta(hours=-7))) + timedelta(minutes=minutes)
        react(service, tip.tip_id, reaction, dwell_ms)
        rows = {row["tip_id"]: row for row in rows_of(engine)}
        assert rows[other.tip_id]["reaction"] is None
        row = rows[tip.tip_id]
        return row["reaction"], row["dwell_ms"], (row["reacted_at"] - NOON) / timedelta(minutes=1)

    assert react_at(1, "dismiss", 900) == ("dismiss", 900, 1)
    assert react_at(2, "dismiss", 900) == ("dismiss", 900, 1)
    assert react_at(3, "dismiss", 901) == ("dismiss", 901, 3)
    assert react_at(4, "done", 20_000) == ("done", 20_000, 4)
    assert rows_of(engine)[0]["shown_at"] is None
    close_service(service)


@pytest.mark.parametrize("tip_id", ["", "a\0b", "\ud83d", "x" * 201])
def test_what_cannot_be_an_id_is_neither_shown_nor_reacted_to(engine, service, tip_id):
    with pytest.raises(UnknownTipError):
        report_shown(service, tip_id)
    with pytest.raises(UnknownTipError):
        react(service, tip_id, "done", 1)
    assert rows_of(engine) == []


def test_a_reaction_before_its_tip_is_kept_and_meets_it(engine, service, opened):
    early = "0123456789abcdef"
    assert react(service, early, "dismiss", 900) == "kept"
    assert report_shown(service, early) == "kept"
    assert react(service, early, "done", 20_000) == "kept"
    assert rows_of(engine) == []
    assert ask(service, tip_id=early).tip_id == early
    [row] = rows_of(engine)
    assert (row["reaction"], row["dwell_ms"]) == ("done", 20_000)
    assert (row["shown_at"], row["reacted_at"]) == (NOON, NOON)
    assert react(service, early, "snooze", 5) == "recorded"
    with writing(engine) as connection:
        assert match_early_reactions(connection) == 0


def test_a_tip_that_comes_by_another_way_meets_its_reaction_and_the_later_one_stays(
    engine, service, opened
):
    react(service, "first-one-to-come", "done", 20_000)
    react(service, "second-one-to-come", "done", 20_000)
    row = {"tip_id": "second-one-to-come", "reaction": "dismiss", "dwell_ms": 5}
    with writing(engine) as connection:
        for tip_id in ("first-one-to-come", "second-one-to-come"):
            connection.execute(
                tip_scores.insert(),
                {"user_key": "u", "key_id": "k", "kind": "focus", "context_json": "{}",
                 "tip_content": "A tip.", "created_at": NOON,
                 **(row if tip_id == row["tip_id"] else {"tip_id": tip_id})},
            )  # fmt: skip
        assert match_early_reactions(connection) == 2
    rows = {row["tip_id"]: row["reaction"] for row in rows_of(engine)}
    assert rows == {"first-one-to-come": "done", "second-one-to-come": "dismiss"}


def test_a_reaction_without_a_tip_is_deleted_after_a_month(engine, service):
    react(service, "0123456789abcdef", "done", 20_000)
    with writing(engine) as connection:
        assert delete_expired_reactions(connection, now=NOON + timedelta(days=29)) == 0
        assert delete_expired_reactions(connection, now=NOON + timedelta(days=31)) == 1


def test_a_repeated_request_with_the_same_id_returns_the_same_tip(engine, service, server, opened):
    server.answers[1] = lambda prompt, sampling: f"Write to <EMAIL_1>, {sampling.seed % 997}."
    server.answers[2] = server.answers[1]
    request = {"context": {"free_text": "mail anna@example.com"}, "tip_id": "0123456789abcdef"}
    first = ask(service, **request)
    assert "anna@example.com" in first.content
    assert ask(service, **request).content == first.content
    assert len(rows_of(engine)) == 1
    with pytest.raises(DataError, match="another request"):
        ask(service, "somebody else", **request)
    with pytest.raises(DataError, match="tip_id"):
        ask(service, tip_id="short")


@pytest.mark.parametrize(
    ("reaction", "dwell_ms"),
    [("liked", 1), ("done", -1), ("done", 2**31), ("done", 1.5), ("done", True), ("done", None)],
)
def test_reactions_that_make_no_sense_are_refused(engine, service, opened, reaction, dwell_ms):
    tip = ask(service)
    with pytest.raises(DataError):
        react(service, tip.tip_id, reaction, dwell_ms)
    assert rows_of(engine)[0]["reaction"] is None


@pytest.mark.parametrize(("user", "kind"), [("", "focus"), ("anna", ""), ("anna", "a\0b")])
def test_a_request_without_a_user_or_a_printable_kind_is_refused(
    engine, service, opened, user, kind
):
    with pytest.raises(DataError):
        request_tip(service, user_id=user, kind=kind, context={})
    assert rows_of(engine) == []


def test_two_services_with_the_same_random_bits_never_overwrite_a_row(engine, chat, server):
    set_champion(engine)
    server.answers[1] = lambda prompt, sampling: f"Tip {sampling.seed % 997}"
    draws = [random.Random(7).getrandbits for _ in range(2)]
    services = [service_of(engine, chat, server, draw=draw) for draw in draws]
    tip = ask(services[0])
    with pytest.raises(sa.exc.IntegrityError):
        ask(services[1], "another")
    [row] = rows_of(engine)
    assert (row["tip_id"], row["tip_content"]) == (tip.tip_id, tip.content)
    assert row["user_key"] == user_key(KEY, "person-1@example.org")
    for service in services:
        close_service(service)


@pytest.fixture
def files(tmp_path):
    """Where SmolLM2's GGUF lies, and a prompt folder for it."""
    pytest.importorskip("xllamacpp")
    base = base_model(ModelConfig())
    write_prompt_folder(load_chat(base.folder, PromptConfig()), base.folder, tmp_path / "prompt")
    return {"gguf": base.gguf, "prompt_folder": tmp_path / "prompt"}


@pytest.mark.slow
def test_llama_cpp_writes_both_models_tips_and_its_failures_are_in_the_row(
    sqlite_url, chat, files, monkeypatch
):
    monkeypatch.setattr(state, "RETRY_SECONDS", 0.0)
    settings = ServeConfig(timeout_seconds=10, max_tokens=48, parallel=1, threads=1)
    engine, runtime = create_store(sqlite_url), connect(settings)
    service = service_of(engine, chat, runtime, settings=settings)
    set_champion(engine, replace(version(1), **files))
    opened = set_challenger(engine, replace(version(2), **files))
    user, other = next(users_on("challenger", opened)), next(users_on("champion", opened))

    def last_row_of(user):
        tip = ask(service, user)
        row = {row["tip_id"]: row for row in rows_of(engine)}[tip.tip_id]
        assert len(row["tip_content"]) > 3
        assert row["cut"] or json.loads(row["sampling_json"])["logprob"] < 0
        return row["arm"], row["model_version"], row["fallback"]

    with contextlib.closing(runtime):
        check_ready(service)
        assert last_row_of(user) == ("challenger", 2, None)
        assert last_row_of(other) == ("champion", 1, None)
        stop(runtime.servers["tips:v2"])
        assert last_row_of(user) == ("challenger", 1, "error")
        service.watcher.refresh()
        assert last_row_of(user) == ("challenger", 2, None)
        runtime.servers["tips:v2"].process.send_signal(signal.SIGSTOP)
        impatient = settings.model_copy(update={"timeout_seconds": 1.0})
        service = replace(service, settings=impatient)
        assert last_row_of(user) == ("challenger", 1, "timeout")
        assert last_row_of(other) == ("champion", 1, None)
        children = [server.process for server in runtime.servers.values()]
        close_service(service)
        assert all(child.poll() is not None for child in children)
    engine.dispose()
