import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import datetime, timedelta

import pytest

from reactune.config.sections import ServeConfig
from reactune.errors import AwayError, CanaryError, DataError, ReleaseError
from reactune.service import state
from reactune.service.state import background_work, check_ready, close_service
from reactune.store.database import writing
from reactune.store.schema import tip_scores
from server_fixtures import wait_until
from serving_fixtures import (
    NOON,
    ask,
    exposure_of,
    fails,
    promote,
    react,
    roll_back,
    rows_of,
    service_of,
    set_challenger,
    set_champion,
    users_on,
    version,
)


def test_a_rollback_during_requests_takes_effect(engine, chat, server, opened):
    service = service_of(engine, chat, server, clock=lambda: datetime.now(NOON.tzinfo))
    stop = threading.Event()

    def keep_asking(number):
        count = 0
        while not stop.is_set():
            count += 1
            ask(service, f"user {number}-{count}")

    with service.watcher.running(), ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(keep_asking, number) for number in range(4)]
        wait_until(lambda: "challenger" in {row["arm"] for row in rows_of(engine)})
        successor = roll_back(engine, opened)
        noticed = datetime.now(NOON.tzinfo) + timedelta(seconds=1)
        wait_until(lambda: any(row["created_at"] > noticed for row in rows_of(engine)))
        stop.set()
        assert [each.result() for each in asking] == [None] * 4
    rows = rows_of(engine)
    late = [row for row in rows if row["created_at"] > noticed]
    assert "challenger" in {row["arm"] for row in rows}
    assert late
    assert {row["arm"] for row in late} == {"champion"}
    assert {(row["rollout_id"], row["propensity"]) for row in late} == {(successor.rollout_id, 1.0)}
    close_service(service)


def test_while_a_challenger_is_being_loaded_the_champion_answers_outside_any_comparison(
    engine, service, server
):
    set_champion(engine)
    ask(service)
    loading, loaded = threading.Event(), threading.Event()
    at_once = server.publish

    def slowly(model):
        loading.set()
        loaded.wait(10)
        at_once(model)

    server.publish = slowly
    opened = set_challenger(engine)
    user = next(users_on("challenger", opened))
    with service.watcher.running():
        loading.wait(10)
        assert ask(service, user).content == "Champion's tip."
        during = rows_of(engine)[-1]
        loaded.set()
        deadline = time.monotonic() + 10
        while ask(service, user).content == "Champion's tip.":
            assert time.monotonic() < deadline
    assert (during["rollout_id"], during["arm"], during["propensity"]) == (None, "champion", 1.0)
    arms = {row["arm"] for row in rows_of(engine) if row["rollout_id"] == opened.rollout_id}
    assert arms == {"challenger"}


def test_a_rollback_while_the_challenger_is_being_loaded_is_not_overlooked(engine, service, server):
    set_champion(engine)
    ask(service)
    opened = set_challenger(engine)
    at_once = server.publish

    def while_it_is_rolled_back(model):
        roll_back(engine, opened)
        time.sleep(service.watcher.max_age_seconds)
        at_once(model)

    server.publish = while_it_is_rolled_back
    service.watcher.refresh()
    assert ask(service, next(users_on("challenger", opened))).content == "Champion's tip."
    assert rows_of(engine)[-1]["arm"] == "champion"


def test_a_challenger_that_cannot_be_published_is_tried_again_later(
    engine, service, server, opened, monkeypatch, caplog
):
    monkeypatch.setattr(state, "RETRY_SECONDS", 0.0)
    at_once = server.publish

    def refuses_the_challenger(model):
        if model.version == 2:
            raise ReleaseError("the file is missing")
        at_once(model)

    server.publish = refuses_the_challenger
    user = next(users_on("challenger", opened))
    assert ask(service, user).content == "Champion's tip."
    assert rows_of(engine)[0]["fallback"] == "error"
    assert "version 2 cannot be published: the file is missing" in caplog.text
    server.publish = at_once
    service.watcher.refresh()
    assert ask(service, user).content == "Challenger's tip."


def test_a_model_that_fell_off_the_server_is_published_again(
    engine, service, server, opened, monkeypatch
):
    monkeypatch.setattr(state, "RETRY_SECONDS", 0.0)
    user = next(users_on("challenger", opened))
    assert ask(service, user).content == "Challenger's tip."
    server.published.clear()
    with pytest.raises(ReleaseError):
        ask(service, user)
    service.watcher.refresh()
    assert ask(service, user).content == "Challenger's tip."


def test_a_version_that_nothing_names_any_more_is_retired_after_a_grace(
    engine, service, server, opened, monkeypatch
):
    monkeypatch.setattr(service.watcher, "_grace_seconds", 0.2)
    service.watcher.refresh()
    promote(engine, opened)
    assert service.watcher.refresh().champion == version(2)
    assert server.retired == []
    time.sleep(0.25)
    service.watcher.refresh()
    assert (server.retired, server.published) == ([1], [2])


def test_models_are_published_once_whatever_the_number_of_requests(engine, service, server, opened):
    for _ in range(5):
        ask(service)
        service.watcher.refresh()
    assert server.published == [1, 2]


def test_before_anything_is_live_there_is_no_tip(engine, service):
    with pytest.raises(CanaryError, match="nothing is live yet"):
        ask(service)
    with pytest.raises(CanaryError, match="nothing is live yet"):
        check_ready(service)


def test_a_service_is_ready_when_its_champion_answers(engine, service, server):
    set_champion(engine)
    check_ready(service)
    server.answers[1] = fails
    with pytest.raises(ReleaseError):
        check_ready(service)
    assert rows_of(engine) == []


def test_a_database_that_does_not_answer_is_an_error(engine, service, opened):
    ask(service)
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE rollouts RENAME TO gone")
    with pytest.raises(DataError, match="what is live cannot be read"):
        service.watcher.refresh()


def test_closing_the_service_stops_the_model_server(engine, chat, server):
    close_service(service_of(engine, chat, server, settings=ServeConfig()))
    assert server.closed


@pytest.fixture
def watched(store, chat, server):
    """A service over SQLite in which a rollout is open."""
    set_champion(store)
    set_challenger(store)
    service = service_of(store, chat, server)
    yield service
    close_service(service)


def gone(store):
    with store.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE rollouts RENAME TO gone")


def test_before_the_first_reading_nothing_is_known(watched):
    assert (watched.watcher.latest, watched.watcher.fresh) == (None, None)
    live = watched.watcher.current()
    assert watched.watcher.latest == watched.watcher.fresh == live
    assert (live.champion, live.challenger, live.share) == (version(1), version(2), 0.5)
    assert live.rollout_id == live.rollout.rollout_id


def test_a_reading_is_fresh_for_half_a_second_and_read_again_after_it(watched, store, monkeypatch):
    monkeypatch.setattr(watched.watcher, "max_age_seconds", 0.2)
    before = watched.watcher.current()
    roll_back(store, before.rollout)
    assert watched.watcher.current() == before
    time.sleep(0.25)
    assert watched.watcher.fresh is None
    assert watched.watcher.current().challenger is None


def test_while_the_database_is_away_the_champion_answers_alone(watched, store, monkeypatch, caplog):
    before = watched.watcher.current()
    monkeypatch.setattr(watched.watcher, "max_age_seconds", 0.0)
    gone(store)
    live = watched.watcher.current()
    assert (live.champion, live.challenger) == (before.champion, None)
    assert (live.share, live.rollout_id) == (0.0, None)
    assert "what is live cannot be read (OperationalError)" in caplog.text
    assert "check the database" in caplog.text


def test_without_any_reading_a_database_that_is_away_is_an_error(watched, store):
    gone(store)
    with pytest.raises(AwayError, match="check the database"):
        watched.watcher.current()


def test_a_withdrawn_challenger_is_dropped_without_waiting_for_a_publication(watched, store):
    opened = watched.watcher.current().rollout
    watched.watcher.drop_withdrawn()
    assert watched.watcher.latest.challenger == version(2)
    successor = roll_back(store, opened)
    with watched.watcher._lock:  # a publication is under way
        watched.watcher.drop_withdrawn()
    live = watched.watcher.latest
    assert (live.challenger, live.rollout_id, live.rollout) == (None, None, successor)


def test_before_any_reading_there_is_nothing_to_drop(watched, store):
    gone(store)
    watched.watcher.drop_withdrawn()
    assert watched.watcher.latest is None


def test_a_request_waits_for_the_first_publication_for_a_bounded_time(watched, monkeypatch):
    monkeypatch.setattr(state, "FIRST_PUBLICATION_SECONDS", 0.05)
    with watched.watcher._lock, pytest.raises(CanaryError, match="still being loaded; try again"):
        watched.watcher.current()


def test_after_the_first_publication_no_request_waits_for_another(watched, monkeypatch):
    before = watched.watcher.current()
    monkeypatch.setattr(watched.watcher, "max_age_seconds", 0.0)
    with watched.watcher._lock:
        assert watched.watcher.current() == before


def test_a_version_that_cannot_be_published_is_not_tried_again_at_once(watched, server, caplog):
    tries = []

    def refuse(model):
        tries.append(model.version)
        raise ReleaseError("the file is missing")

    server.publish = refuse
    for _ in range(3):
        watched.watcher.refresh()
    assert tries == [1, 2]
    assert caplog.text.count("cannot be published: the file is missing") == 2


def test_a_version_that_cannot_be_retired_is_tried_again(
    watched, store, server, monkeypatch, caplog
):
    monkeypatch.setattr(watched.watcher, "_grace_seconds", 0.0)
    opened = watched.watcher.refresh().rollout
    roll_back(store, opened)
    at_once = server.retire

    def refuse(model):
        raise ReleaseError("busy")

    server.retire = refuse
    watched.watcher.refresh()
    assert "version 2 cannot be retired: busy" in caplog.text
    server.retire = at_once
    watched.watcher.refresh()
    assert server.retired == [2]


def test_a_challenger_that_comes_back_within_the_grace_is_not_retired(watched, store, server):
    opened = watched.watcher.refresh().rollout
    roll_back(store, opened)
    watched.watcher.refresh()
    assert (server.published, server.retired) == ([1, 2], [])


def test_background_work_follows_the_rollout_and_matches_reactions_of_tips_from_elsewhere(
    watched, store, monkeypatch, caplog
):
    caplog.set_level("INFO")
    monkeypatch.setattr(state, "MATCH_SECONDS", 0.02)
    opened = watched.watcher.current().rollout
    react(watched, "from-elsewhere-1", "done", 20_000)
    with background_work(watched):
        roll_back(store, opened)
        wait_until(lambda: watched.watcher.latest.challenger is None)
        with writing(store) as connection:
            row = asdict(exposure_of(tip_id="from-elsewhere-1"))
            connection.execute(tip_scores.insert(), row)
        wait_until(lambda: rows_of(store)[0]["reaction"] == "done")
    assert "1 early reactions were matched with their tips" in caplog.text


def test_a_service_draws_its_ids_from_its_own_source(store, chat, server):
    set_champion(store)
    service = service_of(store, chat, server, draw=lambda bits: 2**bits - 1)
    tip = ask(service)
    assert tip.tip_id == "f" * 12 + "4fffbfff" + "f" * 12
    close_service(service)
