"""Our client against the real service on a real socket, which now and then is not there."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import reactune
from reactune import AsyncClient, Client
from reactune.client.http import MAX_WAIT_SECONDS, Outbox, Report, ServiceError, retry_waits
from reactune.service.api_keys import make_key
from reactune.service.state import close_service
from reactune.store.database import create_store
from reactune.web.api import create_app
from server_fixtures import free_port
from serving_fixtures import (
    NOON,
    ModelServer,
    listening,
    rows_of,
    service_of,
    set_champion,
)

CONTEXT = {"free_text": "mail anna@example.com"}


@pytest.fixture
def app(sqlite_url, chat):
    """The service's app, its engine, and how often which path was asked."""
    engine = create_store(sqlite_url)
    set_champion(engine)
    service = service_of(engine, chat, ModelServer({1: "Write to <EMAIL_1>."}))
    inner, asked, broken = create_app(service), [], []

    async def app(scope, receive, send):
        if scope["type"] != "http":
            await inner(scope, receive, send)
            return
        asked.append(scope["path"])
        status = broken.pop(0) if broken else None
        if status is None:
            await inner(scope, receive, send)
            return

        # The service does its work, but its answer is lost on the way.
        async def lost(message):
            if message["type"] == "http.response.start":
                message = {**message, "status": status, "headers": [(b"retry-after", b"0")]}
            else:
                message = {**message, "body": b""}
            await send(message)

        await inner(scope, receive, lost)

    app.engine, app.asked, app.broken, app.service = engine, asked, broken, service
    yield app
    close_service(service)
    engine.dispose()


def test_tips_are_asked_for_shown_and_reacted_to_with_and_without_an_event_loop(app):
    async def live(address):
        async with AsyncClient(address) as client:
            tip = await client.tip("u-2", "focus", CONTEXT)
            await client.shown(tip.tip_id)
            await client.react(tip.tip_id, "dismiss", 900)
            return tip

    with listening(app) as address, Client(address) as client:
        first = client.tip("u-1", "focus", CONTEXT)
        assert first.content == "Write to anna@example.com."
        client.shown(first.tip_id)
        client.react(first.tip_id, "done", 20_000)
        second = asyncio.run(live(address))
    rows = {row["tip_id"]: row for row in rows_of(app.engine)}
    assert rows.keys() == {first.tip_id, second.tip_id}
    assert rows[first.tip_id]["reaction"] == "done"
    assert rows[second.tip_id]["reaction"] == "dismiss"
    assert all(row["shown_at"] == NOON for row in rows.values())


def test_a_tip_whose_answer_is_lost_is_asked_for_again_and_given_once(app):
    app.broken += [503, 502]
    with listening(app) as address, Client(address) as client:
        tip = client.tip("u-1", "focus", CONTEXT)
    assert app.asked.count("/v1/tips") == 3
    assert [row["tip_id"] for row in rows_of(app.engine)] == [tip.tip_id]


def test_what_stays_broken_or_is_refused_is_one_error(app):
    with listening(app) as address, Client(address) as client:
        with pytest.raises(ServiceError) as refused:
            client.tip("", "focus", CONTEXT)
        assert (refused.value.status, app.asked.count("/v1/tips")) == (422, 1)
    with (
        Client(f"http://127.0.0.1:{free_port()}") as client,
        pytest.raises(ServiceError, match="does not answer") as gone,
    ):
        client.tip("u-1", "focus", CONTEXT)
    assert gone.value.status == 0


def test_waits_double_are_drawn_and_follow_retry_after():
    drawn = [wait("") for wait in retry_waits(8, draw=lambda: 0.5)]
    assert drawn == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0])
    assert next(retry_waits(draw=lambda: 0.5))("2") == 2.5
    assert next(retry_waits(draw=lambda: 0.5))("9999") == MAX_WAIT_SECONDS + 0.5
    assert list(retry_waits(1)) == []


def test_reports_wait_on_disk_while_the_service_is_away_and_arrive_in_order(app, tmp_path):
    port = free_port()
    with Client(f"http://127.0.0.1:{port}", outbox=tmp_path / "out.db") as client:
        with listening(app, port):
            tip = client.tip("u-1", "focus", CONTEXT)
        client.react(tip.tip_id, "dismiss", 900)
        client.shown(tip.tip_id)
        client.react(tip.tip_id, "done", 20_000)
        assert rows_of(app.engine)[0]["reaction"] is None
        with listening(app, port):
            assert client.flush() == 3
            assert client.flush() == 0
    [row] = rows_of(app.engine)
    assert (row["reaction"], row["dwell_ms"], row["shown_at"]) == ("done", 20_000, NOON)
    assert app.asked.count("/v1/reactions") == 2


APP = """
import sys
from pathlib import Path
from reactune import Client

with Client(sys.argv[1], outbox=Path(sys.argv[2])) as client:
    for number in range(1_000_000):
        client.react(f"tip-of-the-app-{number:05}", "done", number)
        print(number, flush=True)
"""


def test_an_app_that_is_killed_loses_no_report_and_sends_none_twice(app, tmp_path):
    """Killed while it reports: half of the time with the service there, half without."""
    outbox, port = tmp_path / "out.db", free_port()
    environment = {**os.environ, "PYTHONPATH": str(Path(reactune.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", APP, f"http://127.0.0.1:{port}", outbox],
        stdout=subprocess.PIPE, env=environment, text=True,
    ) as process:  # fmt: skip
        with listening(app, port):
            said = [int(process.stdout.readline()) for _ in range(20)]
        said += [int(process.stdout.readline()) for _ in range(10)]
        process.send_signal(signal.SIGKILL)
        said += [int(line) for line in process.stdout]
    sent = app.asked.count("/v1/reactions")
    waiting = Outbox(outbox).waiting(1_000)
    assert waiting
    with listening(app, port), Client(f"http://127.0.0.1:{port}", outbox=outbox) as client:
        assert client.flush() == len(waiting)
    with app.engine.connect() as connection:
        kept = connection.exec_driver_sql("SELECT tip_id, dwell_ms FROM early_reactions").all()
    told = {f"tip-of-the-app-{number:05}": number for number in said}
    assert told.items() <= dict(kept).items()
    assert app.asked.count("/v1/reactions") == sent + len(waiting)
    # One confirmation at most was on its way when the app was killed.
    assert sent + len(waiting) <= len(kept) + 1


def test_an_id_is_taken_once_also_after_it_was_sent(tmp_path):
    outbox = Outbox(tmp_path / "out.db")
    report = Report("one", "/v1/reactions", {"tip_id": "t"})
    assert outbox.add(report)
    assert not outbox.add(report)
    outbox.settle(report, 204)
    assert not outbox.add(report)
    assert outbox.waiting() == []


def test_one_process_sends_at_a_time(tmp_path):
    outbox = Outbox(tmp_path / "out.db")
    with outbox.sending() as ours, outbox.sending() as others:
        assert (ours, others) == (True, False)
    with outbox.sending() as ours:
        assert ours


def test_what_the_service_refuses_is_settled_and_a_wrong_key_only_waits(app, tmp_path):
    with listening(app) as address:
        with Client(address, outbox=tmp_path / "out.db") as client:
            client.react("t" * 16, "liked", 1)
            assert list(client._outbox.refused().values()) == [422]
            token = make_key(app.engine, "app", ["app"], now=NOON)
            time.sleep(1.3)
            client.react("t" * 16, "done", 1)
            assert len(client._outbox.waiting()) == 1
        with Client(address, api_key=token, outbox=tmp_path / "out.db") as client:
            assert client.flush() == 1
