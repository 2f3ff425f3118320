"""Our client against the real service on a real socket, which now and then is not there."""

import asyncio
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

import reactune
from reactune import AsyncClient, Client, Router
from reactune.client import http
from reactune.client.http import (
    MAX_WAIT_SECONDS,
    NOT_SENT,
    RETRIED,
    TRIES,
    WAITS_IN_OUTBOX,
    ClientTip,
    Outbox,
    Post,
    Report,
    ServiceError,
    UnsendableError,
    connection,
    flush_steps,
    report_steps,
    request_steps,
    retry_waits,
    tip_steps,
)
from reactune.errors import DataError
from reactune.privacy.hashing import HashingKey
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


FORKS = """
import os, sys
from reactune import Client

client = Client(sys.argv[1])

def tip_id():
    return client.tip("u", "focus", {"free_text": "mail anna@example.com"}).tip_id

tips = [tip_id()]
children = []
for number in range(8):
    if not (child := os.fork()):
        client.react(tip_id(), "done", number)
        client.close()
        os._exit(0)
    children.append(child)
    tips.append(tip_id())
print([os.waitpid(child, 0)[1] for child in children], len(set(tips)))
"""


def test_forked_workers_have_connections_of_their_own(app):
    environment = {**os.environ, "PYTHONPATH": str(Path(reactune.__file__).parents[1])}
    with listening(app) as address:
        call = [sys.executable, "-c", FORKS, address]
        done = subprocess.run(
            call, capture_output=True, text=True, env=environment, check=False, timeout=60
        )
    assert done.stdout.strip() == f"{[0] * 8} 9", done.stderr
    dwells = [row["dwell_ms"] for row in rows_of(app.engine) if row["reaction"]]
    assert sorted(dwells) == list(range(8))


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
            printed = [int(process.stdout.readline()) for _ in range(20)]
        printed += [int(process.stdout.readline()) for _ in range(10)]
        process.send_signal(signal.SIGKILL)
        printed += [int(line) for line in process.stdout]
    sent = app.asked.count("/v1/reactions")
    waiting = Outbox(outbox).waiting(1_000)
    assert waiting
    with listening(app, port), Client(f"http://127.0.0.1:{port}", outbox=outbox) as client:
        assert client.flush() == len(waiting)
    with app.engine.connect() as connection:
        kept = connection.exec_driver_sql("SELECT tip_id, dwell_ms FROM early_reactions").all()
    expected = {f"tip-of-the-app-{number:05}": number for number in printed}
    assert expected.items() <= dict(kept).items()
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


def test_an_outbox_that_cannot_be_written_is_one_error_and_keeps_what_it_has(tmp_path):
    (tmp_path / "file").write_text("x" * 5_000)
    for place in (tmp_path, tmp_path / "file", tmp_path / "file" / "out.db", Path("/proc/out.db")):
        with pytest.raises(DataError, match=r"outbox .*: .*; see to the disk and its rights"):
            Client("http://127.0.0.1:1", outbox=place)
    with Client("http://127.0.0.1:1", outbox=tmp_path / "out.db") as client:
        outbox = client._outbox
        outbox.add(Report("r1", "/v1/reactions", {}))
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        try:
            with pytest.raises(DataError, match=r"outbox .*out\.db: .*; see to the disk"):
                client.react("t1", "done", 1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert [report.report_id for report in outbox.waiting()] == ["r1"]


FORKS_WHILE_IT_SENDS = """
import os, sys, time
from pathlib import Path
from reactune.client.http import Outbox

outbox = Outbox(Path(sys.argv[1]))
with outbox.sending():
    if not (child := os.fork()):
        time.sleep(60)
        os._exit(0)
with outbox.sending() as ours:
    print(ours)
os.kill(child, 9)
"""


def test_a_child_that_was_forked_while_its_parent_sent_does_not_keep_the_right_to_send(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(reactune.__file__).parents[1])}
    call = [sys.executable, "-c", FORKS_WHILE_IT_SENDS, str(tmp_path / "out.db")]
    assert subprocess.check_output(call, text=True, env=environment, timeout=60) == "True\n"


def test_what_the_service_refuses_is_settled_and_a_wrong_key_only_waits(app, tmp_path):
    with listening(app) as address:
        with Client(address, outbox=tmp_path / "out.db") as client:
            client._outbox.add(Report("r1", "/v1/reactions", {"tip_id": "t1", "reaction": "liked"}))
            assert (client.flush(), client._outbox.refused()) == (1, {"r1": 422})
            token = make_key(app.engine, "app", ["app"], now=NOON)
            time.sleep(1.3)
            client.react("t" * 16, "done", 1)
            assert len(client._outbox.waiting()) == 1
        with Client(address, api_key=token, outbox=tmp_path / "out.db") as client:
            assert client.flush() == 1


BAD_REPORTS = {
    "r1": ("/v1/reactions", {"tip_id": "t1", "reaction": "done", "dwell_ms": float("nan")}),
    "r2": ("/v1/reactions", {"tip_id": "t1", "reaction": "done", "dwell_ms": float("inf")}),
    "r3": ("/v1/reactions", {"tip_id": "half \ud83d", "reaction": "done", "dwell_ms": 1}),
    "r4": ("/v1/reactions", {"tip_id": "nul \0", "reaction": "done", "dwell_ms": 1}),
    "r5": ("/v1/tips/nul \0/shown", {}),
    "r6": ("/v1/reactions", {"tip_id": "t1", "reaction": "liked", "dwell_ms": 1}),
}


def test_reports_that_no_service_takes_are_set_aside_and_the_later_ones_arrive(
    app, tmp_path, caplog
):
    file = tmp_path / "out.db"
    for report_id, (path, body) in BAD_REPORTS.items():
        Outbox(file).add(Report(report_id, path, body))
    with listening(app) as address, Client(address) as direct:
        tip = direct.tip("u-1", "focus", CONTEXT)
        with Client(address, outbox=file) as client:
            client.shown(tip.tip_id)
            client.react(tip.tip_id, "done", 20_999.6)
        assert Outbox(file).waiting() == []
        Outbox(file).add(Report("r8", *BAD_REPORTS["r1"]))

        async def later():
            async with AsyncClient(address, outbox=file) as client:
                await client.react(tip.tip_id, "snooze", 21_000.0)

        asyncio.run(later())
    refused = Outbox(file).refused()
    assert refused.keys() == {*BAD_REPORTS, "r8"}
    assert [refused[f"r{n}"] for n in (1, 2, 3, 8)] == [NOT_SENT] * 4
    assert {refused[f"r{n}"] for n in (4, 5, 6)} <= {NOT_SENT, 404, 422}
    (row,) = rows_of(app.engine)
    assert (row["reaction"], row["dwell_ms"], row["shown_at"]) == ("snooze", 21_000, NOON)
    assert sum("is set aside: " in record.message for record in caplog.records) == 7


@pytest.mark.parametrize(
    ("tip_id", "reaction", "dwell_ms", "message"),
    [
        ("t1", "done", float("nan"), "dwell_ms = nan: give milliseconds, 0 to"),
        ("t1", "done", float("inf"), "dwell_ms = inf"),
        ("t1", "done", -1, "dwell_ms = -1"),
        ("t1", "done", 2**31, "dwell_ms = 2147483648"),
        ("t1", "done", True, "dwell_ms = True"),
        ("t1", "done", "20", "dwell_ms = '20'"),
        ("t1", "Liked", 1, "reaction 'Liked': give one of done, dismiss, snooze"),
        ("nul \0", "done", 1, r"tip_id 'nul \\x00': no tip has such an id"),
        ("half \ud83d", "done", 1, "no tip has such an id"),
        ("", "done", 1, "no tip has such an id"),
    ],
)
def test_what_can_be_known_is_refused_at_the_call(tmp_path, tip_id, reaction, dwell_ms, message):
    with Client("http://127.0.0.1:1", outbox=tmp_path / "out.db") as client:
        with pytest.raises(DataError, match=message):
            client.react(tip_id, reaction, dwell_ms)
        if "id" in message:
            with pytest.raises(DataError, match=message):
                client.shown(tip_id)
        with pytest.raises(UnsendableError, match="give JSON of finite numbers"):
            client.tip("u-1", "focus", {"score": float("nan")})
        assert client._outbox.waiting() == []


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8765", "ftp://host", "http://", "//host", "http://[::1", "http://a:b", None, 5,
     "http://a:99999", "http://a b", "http://a?key=x", "http://a#b"],
)  # fmt: skip
def test_a_url_that_no_request_can_go_to_is_refused_at_once(url, tmp_path):
    for make in (Client, AsyncClient):
        with pytest.raises(DataError, match=r"url = .* is no address of a server; write http://"):
            make(url, outbox=tmp_path / "out.db")
    with pytest.raises(DataError, match="write http://"):
        Router.from_service(url, key=HashingKey(b"k" * 32))


@pytest.mark.parametrize("key", ["rt_\u00fc", "rt_\nx", "rt_\ud83d", "rt_\0"])
def test_a_key_that_no_header_can_hold_is_refused_at_once_and_not_quoted(key):
    with pytest.raises(DataError, match="api_key: ") as refused:
        Client("http://127.0.0.1:1", api_key=key)
    assert "rt_" not in str(refused.value)


def test_a_key_may_have_the_line_break_of_its_file():
    assert connection("http://a", " rt_x\n", 1)["headers"] == {"authorization": "Bearer rt_x"}
    assert connection("http://a", "\n", 1)["headers"] == {}


@pytest.mark.parametrize("context", [None, [1], "x", 5])
def test_a_context_that_is_no_mapping_is_refused_at_the_call(context):
    with (
        Client("http://127.0.0.1:1") as client,
        pytest.raises(UnsendableError, match=r"context is a \w+; give a dictionary"),
    ):
        client.tip("u-1", "focus", context)


@pytest.mark.parametrize("sent", [b"<html>Welcome</html>", b"[]", b"{}", b"null"])
def test_an_answer_of_somebody_else_is_an_error_that_says_so(sent):
    with pytest.raises(ServiceError, match="the answer is no tip; is the URL that of"):
        run(tip_steps("u", "focus", {}, ()), [httpx.Response(200, content=sent)])


def test_a_redirect_to_another_address_settles_no_report(tmp_path):
    outbox = Outbox(tmp_path / "out.db")
    outbox.add(Report("r1", "/v1/reactions", {}))
    moved = answer(307, location="https://elsewhere")
    assert run(flush_steps(outbox), [moved])[0] == 0
    assert [report.report_id for report in outbox.waiting()] == ["r1"]
    with pytest.raises(ServiceError, match="status 307"):
        run(request_steps("/v1/reactions", {}), [moved])


def answer(status, body=None, **headers):
    request = httpx.Request("POST", "http://service")
    return httpx.Response(status, json=body, headers=headers, request=request)


def run(steps, answers):
    """The result of these steps when the service answers so, and what they did."""
    sent, waited, answers = [], [], list(answers)
    result = None
    while True:
        try:
            step = steps.send(result)
        except StopIteration as stop:
            assert answers == []
            return stop.value, sent, waited
        result = None
        if isinstance(step, Post):
            sent.append(step)
            result = answers.pop(0)
        elif isinstance(step, float):
            waited.append(step)
        else:
            result = step()


LOST = httpx.ConnectError("no route")
TIP = {"tip_id": "t1", "content": "Take a walk."}


def test_a_tip_is_requested_again_under_the_same_id():
    answers = [LOST, answer(503), answer(200, TIP)]
    tip, sent, waited = run(tip_steps("u-1", "focus", CONTEXT, ["Anna"]), answers)
    assert tip == ClientTip("t1", "Take a walk.", recorded=True)
    assert [post.path for post in sent] == ["/v1/tips"] * 3
    assert sent[0].body == sent[1].body == sent[2].body
    assert sent[0].body["names"] == ["Anna"]
    assert re.fullmatch("[0-9a-f]{32}", sent[0].body["tip_id"])
    assert len(waited) == 2


def test_two_tips_have_two_ids():
    bodies = [
        run(tip_steps("u-1", "focus", {}, ()), [answer(200, TIP)])[1][0].body for _ in range(2)
    ]
    assert bodies[0]["tip_id"] != bodies[1]["tip_id"]


@pytest.mark.parametrize("recorded", [True, False])
def test_a_tip_says_whether_it_is_recorded(recorded):
    tip, _, _ = run(tip_steps("u", "k", {}, ()), [answer(200, {**TIP, "recorded": recorded})])
    assert tip.recorded == recorded


@pytest.mark.parametrize("status", sorted(RETRIED))
def test_a_status_that_may_pass_is_retried_and_then_an_error_with_the_status(status):
    with pytest.raises(ServiceError, match=f"status {status}") as error:
        run(request_steps("/v1/reactions", {}), [answer(status)] * TRIES)
    assert error.value.status == status


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_a_refusal_is_an_error_at_once_with_the_reason_of_the_service(status):
    refused = answer(status, {"error": "give a name"})
    with pytest.raises(ServiceError, match="give a name"):
        run(request_steps("/v1/reactions", {}), [refused])


def test_without_any_answer_the_error_names_its_type_and_what_to_check():
    with pytest.raises(ServiceError, match=r"ConnectError.*is it running") as error:
        run(request_steps("/v1/reactions", {}), [LOST] * TRIES)
    assert error.value.status == 0


def test_retry_after_is_waited_for():
    steps = request_steps("/v1/reactions", {})
    _, _, waited = run(steps, [answer(429, **{"retry-after": "3"}), answer(204)])
    assert 3.0 <= waited[0] <= 4.0


def test_without_an_outbox_a_report_is_a_request():
    _, sent, _ = run(report_steps(None, "/v1/tips/t1/shown", {}), [answer(204)])
    assert sent == [Post("/v1/tips/t1/shown", {})]
    assert run(flush_steps(None), []) == (0, [], [])


def test_with_an_outbox_a_report_is_on_disk_before_it_is_sent(tmp_path):
    outbox = Outbox(tmp_path / "out.db")
    steps = report_steps(outbox, "/v1/reactions", {"tip_id": "t1"})
    assert next(steps)() is True
    assert [report.body for report in outbox.waiting()] == [{"tip_id": "t1"}]
    steps.close()


@pytest.mark.parametrize("first", [LOST, *map(answer, sorted(WAITS_IN_OUTBOX))])
def test_a_report_that_cannot_be_sent_now_keeps_its_place_before_the_later_ones(tmp_path, first):
    outbox = Outbox(tmp_path / "out.db")
    for number in range(3):
        outbox.add(Report(f"r{number}", f"/{number}", {}))
    assert run(flush_steps(outbox), [answer(204), first])[0] == 1
    settled, sent, _ = run(flush_steps(outbox), [answer(204), answer(422)])
    assert (settled, [post.path for post in sent]) == (2, ["/1", "/2"])
    assert outbox.refused() == {"r2": 422}
    assert outbox.waiting() == []


def test_flushing_sends_more_than_one_read_of_the_outbox_holds(tmp_path):
    outbox = Outbox(tmp_path / "out.db")
    for number in range(120):
        outbox.add(Report(f"r{number:03}", f"/{number}", {}))
    settled, sent, _ = run(flush_steps(outbox), [answer(204)] * 120)
    assert settled == 120
    assert [post.path for post in sent] == [f"/{number}" for number in range(120)]


def test_an_interrupted_flush_releases_the_right_to_send(tmp_path):
    outbox = Outbox(tmp_path / "out.db")
    outbox.add(Report("r1", "/1", {}))
    steps = flush_steps(outbox)
    steps.send(next(steps)())
    with outbox.sending() as may_send:
        assert not may_send
    steps.close()
    with outbox.sending() as may_send:
        assert may_send


def test_of_sent_reports_the_outbox_remembers_the_latest_ids_only(tmp_path, monkeypatch):
    monkeypatch.setattr(http, "REMEMBERED_REPORTS", 5)
    outbox = Outbox(tmp_path / "out.db")
    reports = [Report(f"r{number}", "/", {}) for number in range(10)]
    for report in reports:
        assert outbox.add(report)
        outbox.settle(report, 204)
    assert [outbox.add(report) for report in reports] == [True] * 5 + [False] * 5


def test_both_clients_send_the_key_and_no_body_where_there_is_none():
    requests = []

    def service(request):
        requests.append((request.url.path, request.headers["authorization"], request.content))
        return httpx.Response(204)

    async def report(client):
        await client.shown("t1")
        await client.aclose()

    transport = httpx.MockTransport(service)
    client = Client("http://service", api_key="rt_1")
    client._http = httpx.Client(base_url="http://service", headers=client._http.headers,
                                transport=transport)  # fmt: skip
    client.shown("t1")
    client.close()
    other = AsyncClient("http://service", api_key="rt_1")
    other._http = httpx.AsyncClient(base_url="http://service", headers=other._http.headers,
                                    transport=transport)  # fmt: skip
    asyncio.run(report(other))
    assert requests == [("/v1/tips/t1/shown", "Bearer rt_1", b"")] * 2
