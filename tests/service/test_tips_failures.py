"""When things break: real servers that are slow or talk nonsense, real databases locked or full."""

import asyncio
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from places import BENCH
from reactune.canary.outcomes import read_outcomes
from reactune.config.sections import (
    CanaryConfig,
    LabelConfig,
    ModelConfig,
    PromptConfig,
    ServeConfig,
)
from reactune.errors import ReleaseError
from reactune.model.files import base_model
from reactune.model.prompt import load_chat, write_prompt_folder
from reactune.release.ollama import Ollama
from reactune.service.state import close_service
from reactune.service.tips import TipRequest, create_tip
from reactune.store.database import create_store
from reactune.store.queries import current_rollout
from server_fixtures import answers, free_port, lose, make_cluster, running_postgres, wait_until
from serving_fixtures import (
    MORNING,
    NOON,
    Hanging,
    ask,
    fails,
    promote,
    react,
    report_shown,
    roll_back,
    rows_of,
    service_of,
    set_challenger,
    set_champion,
    users_on,
    version,
)

STUB = BENCH / "model_stub.py"
GOOD = ("Take a short walk.",)


@pytest.fixture(scope="session")
def prompts(tmp_path_factory):
    folder, base = tmp_path_factory.mktemp("prompt"), base_model(ModelConfig()).folder
    write_prompt_folder(load_chat(base, PromptConfig()), base, folder)
    return folder


def last_row(engine):
    return rows_of(engine)[-1]


@contextmanager
def model_server(*options):
    port = free_port()
    command = [sys.executable, STUB, "--port", str(port), *options]
    with subprocess.Popen(command) as process:
        try:
            wait_until(lambda: answers(f"http://127.0.0.1:{port}/api/tags"), process=process)
            yield f"http://127.0.0.1:{port}", process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("options", "because"), [(("--garbage",), "error"), (("--delay-ms", "4000"), "timeout")]
)
def test_while_the_model_server_answers_garbage_or_is_slow_stored_tips_are_shown(
    store, chat, prompts, options, because
):
    set_champion(store, replace(version(1), prompt_folder=prompts))
    rows = []

    async def live(url, process):
        settings = ServeConfig(
            runtime="ollama", ollama_url=url, good_tips={"focus": GOOD}, timeout_seconds=1.5,
            champion_timeout_seconds=1.5,
        )  # fmt: skip
        runtime = Ollama(settings)
        service = service_of(store, chat, runtime, settings=settings)
        request = TipRequest("person-1@example.org", "focus", MORNING)
        assert (await create_tip(service, request)).content == GOOD[0]
        rows.append(last_row(store))
        process.kill()
        process.wait(20)
        assert (await create_tip(service, request)).content == GOOD[0]
        rows.append(last_row(store))
        await runtime.end_writing()
        close_service(service)

    with model_server(*options) as (url, process):
        asyncio.run(live(url, process))
    assert [row["fallback"] for row in rows] == [because, "error"]
    for row in rows:
        assert (row["source"], row["model_version"]) == ("stored", None)
        assert (row["arm"], row["propensity"], row["sampling_json"]) == ("champion", 1.0, None)


def test_what_a_user_liked_before_comes_before_what_the_settings_name(store, chat, server):
    set_champion(store)
    settings = ServeConfig(good_tips={"*": GOOD})
    service = service_of(store, chat, server, settings=settings)
    tip = ask(service)
    react(service, tip.tip_id, "done", 20_000)
    server.answers[1] = fails
    assert ask(service).content == "Champion's tip."
    assert last_row(store)["source"] == "stored"
    assert ask(service, "somebody else").content == GOOD[0]
    close_service(service)
    service = service_of(store, chat, server)
    with pytest.raises(ReleaseError):
        ask(service, "somebody else")
    close_service(service)


def test_a_blocked_text_leaves_the_guards_verdict_in_the_row(store, chat, server):
    set_champion(store)
    opened = set_challenger(store)
    settings = ServeConfig(good_tips={"*": GOOD}, unsafe_texts=("gun",))
    service = service_of(store, chat, server, settings=settings)
    user = next(users_on("challenger", opened))
    server.answers = {2: "Write to bob@example.org.", 1: "Fine."}
    assert ask(service, user).content == "Fine."
    row = last_row(store)
    assert (row["fallback"], row["guard"], row["model_version"]) == (
        "blocked", "personal data,passed", 1,
    )  # fmt: skip
    server.answers[1] = "Bring a gun."
    assert ask(service, user).content == GOOD[0]
    assert last_row(store)["guard"] == "personal data,unsafe,unsafe,unsafe,passed"
    close_service(service)


def test_while_the_database_is_locked_tips_are_shown_without_a_record(store, chat, server):
    set_champion(store)
    service = service_of(store, chat, server)
    assert ask(service).recorded
    sa.event.listen(
        store, "engine_connect", lambda c: c.connection.execute("PRAGMA busy_timeout = 50")
    )
    with closing(sqlite3.connect(store.url.database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        tip = ask(service)
        other.execute("ROLLBACK")
    assert (tip.content, tip.recorded) == ("Champion's tip.", False)
    assert len(rows_of(store)) == 1
    assert ask(service).recorded
    assert len(rows_of(store)) == 2
    close_service(service)


def test_after_record_seconds_the_tip_is_shown_and_its_late_record_is_correct(store, chat, server):
    set_champion(store)
    service = service_of(store, chat, server)
    ask(service)
    hurried = replace(service, settings=ServeConfig(record_seconds=0.05))
    with closing(sqlite3.connect(store.url.database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        tip = ask(hurried)
        other.execute("ROLLBACK")
    close_service(service)
    assert not tip.recorded
    assert tip.tip_id in {row["tip_id"] for row in rows_of(store)}


@pytest.mark.postgres
def test_postgresql_may_restart_under_the_service(chat, server):
    folder, port = Path(tempfile.mkdtemp(prefix="reactune-postgres-")), free_port()
    make_cluster(folder)
    with running_postgres(folder, port=port) as database:
        engine = create_store(f"postgresql://postgres@127.0.0.1:{port}/postgres")
        opened = [set_champion(engine), set_challenger(engine)][1]
        service = service_of(engine, chat, server)
        user = next(users_on("challenger", opened))
        before = ask(service, user)
        lose(database)
        time.sleep(0.6)
        away = ask(service, user, tip_id="t" * 16)
    with running_postgres(folder, port=port):
        time.sleep(0.6)
        after = ask(service, user)
        recorded = {row["tip_id"]: row["arm"] for row in rows_of(engine)}
        close_service(service)
        engine.dispose()
    shutil.rmtree(folder, ignore_errors=True)
    assert (away.content, away.recorded) == ("Champion's tip.", False)
    assert recorded == {before.tip_id: "challenger", after.tip_id: "challenger"}


def test_while_the_database_is_full_tips_are_shown_and_later_ones_are_recorded_again(
    store, chat, server
):
    set_champion(store)
    service = service_of(store, chat, server)
    ask(service)
    pages = []

    def limit(connection):
        connection.connection.execute(f"PRAGMA max_page_count = {pages[-1]}")

    with store.connect() as connection:
        used = connection.exec_driver_sql("PRAGMA page_count").scalar()
    pages.append(used)
    sa.event.listen(store, "engine_connect", limit)
    server.answers[1] = "word " * 100
    settings = ServeConfig(max_tip_chars=100_000)
    big = replace(service, settings=settings)
    server.answers[1] = " ".join(f"w{n}" for n in range(5_000))
    tips = [ask(big) for _ in range(20)]
    recorded = {tip.tip_id for tip in tips if tip.recorded}
    assert len(recorded) < 20
    assert recorded <= {row["tip_id"] for row in rows_of(store)}
    assert len(rows_of(store)) == 1 + len(recorded)
    pages.append(10 * used)
    assert ask(big).recorded
    close_service(service)


def test_while_what_is_live_cannot_be_read_the_champion_goes_on_outside_of_any_comparison(
    store, chat, server
):
    set_champion(store)
    opened = set_challenger(store)
    service = service_of(store, chat, server)
    user = next(users_on("challenger", opened))
    assert ask(service, user).content == "Challenger's tip."
    with store.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE rollouts RENAME TO gone")
    time.sleep(0.6)
    assert ask(service, user).content == "Champion's tip."
    row = last_row(store)
    assert (row["rollout_id"], row["arm"], row["propensity"]) == (None, "champion", 1.0)
    close_service(service)


def test_a_clock_that_steps_back_shows_no_tip_before_it_was_made_nor_moves_its_unit(
    store, chat, server
):
    set_champion(store)
    opened = set_challenger(store)
    now = [NOON]
    service = service_of(store, chat, server, clock=lambda: now[0])
    tip = ask(service)
    now[0] = NOON - timedelta(days=2)
    report_shown(service, tip.tip_id)
    react(service, tip.tip_id, "dismiss", 900)
    now[0] = NOON - timedelta(days=1)
    react(service, tip.tip_id, "done", 20_000)
    again = ask(service)
    rows = {row["tip_id"]: row for row in rows_of(store)}
    assert rows[tip.tip_id]["shown_at"] == NOON
    assert rows[tip.tip_id]["reaction"] == "done"
    assert rows[again.tip_id]["unit_key"].startswith("2026-03-03:")
    with store.connect() as connection:
        seen = read_outcomes(
            connection, opened.rollout_id, labels=LabelConfig(), settings=CanaryConfig(),
            now=NOON + timedelta(hours=1),
        )  # fmt: skip
    assert (len(seen.tips), seen.positives.sum()) == (1, 1)
    close_service(service)


@pytest.mark.parametrize(("ends", "fallback"), [(roll_back, "stopped"), (promote, None)])
def test_a_rollout_that_ends_during_a_request_shows_nothing_that_was_withdrawn(
    store, chat, server, ends, fallback
):
    set_champion(store)
    opened = set_challenger(store)
    service = service_of(store, chat, server, settings=ServeConfig())
    user = next(users_on("challenger", opened))
    ask(service, user)
    server.answers[2] = hanging = Hanging()
    with ThreadPoolExecutor(1) as thread:
        asked = thread.submit(ask, service, user)
        time.sleep(0.3)
        ends(store, opened)
        service.watcher.refresh()
        hanging.let_go.set()
        content = asked.result().content
    row = last_row(store)
    expected = "Champion's tip." if fallback else "too late"
    assert (content, row["fallback"], row["rollout_id"]) == (expected, fallback, opened.rollout_id)
    assert (row["arm"], row["propensity"]) == ("challenger", 0.5)
    assert row["model_version"] == (1 if fallback else 2)
    close_service(service)


def test_of_two_concurrent_ends_of_a_rollout_one_succeeds_and_one_decision_is_stored(engine):
    set_champion(engine)
    opened = set_challenger(engine)
    start = threading.Barrier(2)

    def end(how):
        start.wait(20)
        return how(engine, opened)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(end, (promote, roll_back))
    assert first == second
    with engine.connect() as connection:
        assert current_rollout(connection) == first
        verdicts = connection.exec_driver_sql(
            "SELECT verdict FROM decisions WHERE verdict <> 'wait'"
        ).scalars().all()  # fmt: skip
    assert len(verdicts) == 2  # that of the first champion, and one of the two
