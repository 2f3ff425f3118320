import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from fastapi.testclient import TestClient

import reactune
from places import TESTS
from reactune.config.sections import ModelConfig, ServeConfig
from reactune.erasure.requests import open_erasures
from reactune.model.files import base_model
from reactune.privacy.hashing import user_key
from reactune.service.state import close_service
from reactune.store.database import create_store, reading
from reactune.web.access import MAX_BODY_BYTES, TIPS_AT_ONCE
from reactune.web.api import create_app
from server_fixtures import answers, free_port, wait_until
from serving_fixtures import (
    KEY,
    NOON,
    Hanging,
    ModelServer,
    fails,
    roll_back,
    rows_of,
    service_of,
    set_champion,
    users_on,
    version,
)

SECRET = "my-secret-words"
PATHS = (str(TESTS), str(Path(reactune.__file__).parents[1]))


@pytest.fixture(scope="session")
def model_folder():
    return base_model(ModelConfig()).folder


@pytest.fixture
def server():
    return ModelServer({1: "Write to <EMAIL_1>.", 2: "Challenger's tip."})


@pytest.fixture
def client(engine, chat, server):
    service = service_of(engine, chat, server)
    with TestClient(create_app(service)) as client:
        yield client
    close_service(service)


def tip_body(**changes):
    context = {"free_text": "mail anna@example.com"}
    return {"user": "u1", "kind": "focus", "context": context, **changes}


def test_a_tip_is_asked_for_shown_and_reacted_to(engine, client):
    set_champion(engine)
    answer = client.post("/v1/tips", json=tip_body())
    assert answer.status_code == 200
    assert answer.json() == {
        "tip_id": rows_of(engine)[0]["tip_id"],
        "content": "Write to anna@example.com.",
        "recorded": True,
    }
    tip_id = answer.json()["tip_id"]
    for _ in range(2):
        assert client.post(f"/v1/tips/{tip_id}/shown").status_code == 204
        reaction = {"tip_id": tip_id, "reaction": "done", "dwell_ms": 20_000}
        assert client.post("/v1/reactions", json=reaction).status_code == 204
    [row] = rows_of(engine)
    assert (row["reaction"], row["dwell_ms"]) == ("done", 20_000)
    assert (row["shown_at"], row["reacted_at"]) == (NOON, NOON)
    assert row["tip_content"] == "Write to <EMAIL_1>."


def test_every_kind_of_context_part_is_taken(engine, client, server):
    set_champion(engine)
    server.answers[1] = "A tip."
    context = {
        "free_text": "fine",
        "open_tasks": ["one", "two"],
        "user_settings": {"language": "en", "loud": True, "volume": 3, "speed": 1.5},
        "hour": 7,
        "weekend": False,
        "nothing": None,
    }
    assert client.post("/v1/tips", json=tip_body(context=context)).status_code == 200
    logged = json.loads(rows_of(engine)[0]["context_json"])["context"]
    assert logged == {"free_text": "fine", "open_tasks": ["one", "two"]}


@pytest.mark.parametrize(
    "changes",
    [
        {"user": ""},
        {"user": 7},
        {"user": "a" * 513},
        {"user": "\ud83d"},
        {"kind": ""},
        {"kind": "a\nb"},
        {"kind": "a\0b"},
        {"kind": "k" * 101},
        {"context": [SECRET]},
        {"context": {"free_text": {"deep": {SECRET: 1}}}},
        {"context": {"free_text": SECRET + "x" * 20_001}},
        {"context": {SECRET * 20: "x"}},
        {"context": {f"{SECRET}{n}": 1 for n in range(51)}},
        {"context": {"open_tasks": [SECRET] * 201}},
        {"context": {"open_tasks": [SECRET, 1]}},
        {"context": {"hour": 2**70}},
        {"names": [SECRET] * 51},
        {"names": ""},
        {SECRET: 1},
    ],
)
def test_bodies_that_do_not_fit_are_refused_without_repeating_them(
    engine, client, opened, changes, caplog
):
    answer = client.post("/v1/tips", content=json.dumps(tip_body(**changes)))
    assert answer.status_code == 422
    assert answer.json().keys() == {"error"}
    assert SECRET not in answer.text + caplog.text
    assert rows_of(engine) == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 50_000,
        b'{"user": NaN}',
        b'{"dwell_ms": 1e999}',
    ],
)
def test_bodies_that_are_no_json_object_are_refused(client, body):
    answer = client.post("/v1/tips", content=body)
    assert answer.status_code in (400, 422)
    assert answer.json().keys() == {"error"}


def test_a_number_that_is_none_is_refused(engine, client, opened):
    body = json.dumps(tip_body(context={"hour": float("nan")}))
    assert client.post("/v1/tips", content=body).status_code == 422
    body = json.dumps(tip_body(context={"hour": float("inf")}))
    assert client.post("/v1/tips", content=body).status_code == 422


def test_a_body_that_is_too_large_is_refused_with_and_without_its_length(client):
    large = json.dumps(tip_body(names=["n" * MAX_BODY_BYTES])).encode()
    in_pieces = (large[start : start + 10_000] for start in range(0, len(large), 10_000))
    for content in (large, in_pieces):
        answer = client.post("/v1/tips", content=content)
        assert answer.status_code == 413
        assert answer.json() == {"error": "the body is larger than 262,144 bytes"}


@pytest.mark.parametrize(
    "changes",
    [
        {"reaction": "liked"},
        {"reaction": None},
        {"dwell_ms": -1},
        {"dwell_ms": "20"},
        {"dwell_ms": True},
        {"dwell_ms": 2**31},
        {"tip_id": ""},
        {"extra": 1},
    ],
)
def test_reactions_that_make_no_sense_are_refused(client, opened, changes):
    body = {"tip_id": "t", "reaction": "done", "dwell_ms": 1, **changes}
    assert client.post("/v1/reactions", json=body).status_code == 422


@pytest.mark.parametrize("kind", ["text/plain;charset=UTF-8", "text/plain", ""])
def test_reports_of_a_closing_page_are_read_whatever_they_are_called(engine, client, opened, kind):
    tip_id = client.post("/v1/tips", json=tip_body()).json()["tip_id"]
    sent = {"content": f'{{"tip_id": "{tip_id}", "reaction": "done", "dwell_ms": 20999.6}}'}
    answer = client.post("/v1/reactions", **sent, headers={"content-type": kind})
    assert answer.status_code == 204
    shown = client.post(f"/v1/tips/{tip_id}/shown", content="", headers={"content-type": kind})
    assert shown.status_code == 204
    (row,) = rows_of(engine)
    assert (row["reaction"], row["dwell_ms"]) == ("done", 21_000)
    assert client.post("/v1/tips", content="{}", headers={"content-type": kind}).status_code == 422


def test_pages_of_other_origins_are_let_in_only_by_the_setting(engine, chat, server):
    asked = {"origin": "https://app.example.com", "access-control-request-method": "POST",
             "access-control-request-headers": "authorization, content-type"}  # fmt: skip
    for origins, allowed in ((), None), (("https://app.example.com",), "https://app.example.com"):
        service = service_of(engine, chat, server, settings=ServeConfig(cors_origins=origins))
        with TestClient(create_app(service)) as client:
            answer = client.options("/v1/reactions", headers=asked)
            assert answer.headers.get("access-control-allow-origin") == allowed
            other = client.get("/healthz", headers={"origin": "https://evil.example.com"})
            assert "access-control-allow-origin" not in other.headers
        close_service(service)


def test_what_cannot_be_a_tip_is_not_found_and_what_could_is_kept(client, opened):
    body = {"tip_id": "nobody's", "reaction": "done", "dwell_ms": 1}
    assert client.post("/v1/reactions", json=body).status_code == 202
    answer = client.post("/v1/tips/a%00b/shown")
    assert answer.status_code == 404
    assert "no tip has such an id" in answer.json()["error"]


def test_unknown_paths_and_methods_are_answered_in_the_same_form(client):
    for answer, status in ((client.get("/v2"), 404), (client.get("/v1/tips"), 405)):
        assert (answer.status_code, list(answer.json())) == (status, ["error"])


def test_when_no_model_answers_the_error_quotes_nothing_of_the_request(
    engine, client, server, opened, caplog
):
    server.answers = {1: fails, 2: fails}
    answer = client.post("/v1/tips", json=tip_body(context={"free_text": SECRET}, user="u7"))
    assert answer.status_code == 503
    assert answer.json() == {
        "error": "version 1, the champion, does not answer; check the model server"
    }
    assert SECRET not in caplog.text
    assert "u7" not in caplog.text
    assert rows_of(engine) == []


def test_while_the_database_is_away_people_get_tips_that_count_for_nothing(
    engine, client, server, opened, caplog
):
    server.answers[1] = "A tip."
    tip_id = client.post("/v1/tips", json=tip_body()).json()["tip_id"]
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE tip_scores RENAME TO gone")
    asked = tip_body(context={"free_text": SECRET}, user="u7", tip_id="a" * 16)
    assert client.post("/v1/tips", json=asked).json() == {
        "tip_id": "a" * 16, "content": "A tip.", "recorded": False,
    }  # fmt: skip
    body = {"messages": [{"role": "user", "content": SECRET}], "user": "u7"}
    for is_stream in (False, True):
        chat = client.post("/v1/chat/completions", json={**body, "stream": is_stream})
        assert (chat.status_code, chat.headers["x-reactune-recorded"]) == (200, "false")
    answer = client.post(f"/v1/tips/{tip_id}/shown")
    assert answer.status_code == 503
    assert answer.json() == {"error": "the database does not answer; try again in a moment"}
    assert SECRET not in caplog.text
    assert "u7" not in caplog.text


def test_alive_is_not_ready(engine, client, server):
    assert client.get("/healthz").json() == {"status": "alive"}
    answer = client.get("/readyz")
    assert (answer.status_code, "nothing is live" in answer.json()["error"]) == (503, True)
    set_champion(engine)
    time.sleep(0.6)
    assert client.get("/readyz").json() == {"status": "ready"}
    server.answers[1] = fails
    assert client.get("/readyz").status_code == 503
    assert client.get("/healthz").status_code == 200


def test_two_hundred_requests_at_once_lose_and_double_no_row(engine, client, opened):
    def one(number):
        tip = client.post("/v1/tips", json=tip_body(user=f"user {number}")).json()
        reaction = {"tip_id": tip["tip_id"], "reaction": "snooze", "dwell_ms": number}
        assert client.post(f"/v1/tips/{tip['tip_id']}/shown").status_code == 204
        assert client.post("/v1/reactions", json=reaction).status_code == 204
        return tip["tip_id"], number

    with ThreadPoolExecutor(40) as pool:
        acknowledged = set(pool.map(one, range(200)))
    rows = rows_of(engine)
    assert len(acknowledged) == len(rows) == 200
    assert {(row["tip_id"], row["dwell_ms"]) for row in rows} == acknowledged
    assert all(row["shown_at"] == NOON and row["reaction"] == "snooze" for row in rows)


def test_tips_that_hang_hold_up_neither_reactions_nor_the_sign_of_life(engine, client, server):
    set_champion(engine)
    tip_id = client.post("/v1/tips", json=tip_body()).json()["tip_id"]
    server.answers[1] = hanging = Hanging()
    with ThreadPoolExecutor(TIPS_AT_ONCE + 10) as pool:
        asked = [
            pool.submit(client.post, "/v1/tips", json=tip_body()) for _ in range(TIPS_AT_ONCE + 10)
        ]
        time.sleep(0.5)
        started = time.monotonic()
        reaction = {"tip_id": tip_id, "reaction": "done", "dwell_ms": 1}
        assert client.post("/v1/reactions", json=reaction).status_code == 204
        assert client.get("/healthz").status_code == 200
        assert time.monotonic() - started < 15
        assert not any(each.done() for each in asked)
        hanging.let_go.set()
        assert {each.result().status_code for each in asked} == {200}


def test_a_rollback_reaches_the_next_requests(engine, client, opened):
    users = users_on("challenger", opened)
    time.sleep(0.6)
    assert client.post("/v1/tips", json=tip_body(user=next(users))).json()["content"] == (
        "Challenger's tip."
    )
    roll_back(engine, opened)
    time.sleep(0.6)
    answer = client.post("/v1/tips", json=tip_body(user=next(users))).json()
    assert answer["content"] == "Write to anna@example.com."


def test_the_service_needs_none_of_the_heavy_libraries():
    code = (
        "import sys, reactune.web.api\n"
        "heavy = {'torch', 'transformers', 'trl', 'mlflow', 'ibis', 'pyarrow', 'xllamacpp'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    )
    assert answer.stdout == "[]\n"


SERVE = """
import sys
from pathlib import Path
from serving_fixtures import ModelServer
from reactune.config.settings import load
from reactune.web.server import serve

class Reporting(ModelServer):
    def close(self):
        Path(sys.argv[2]).write_text("closed")

serve(load(Path(sys.argv[1])), lambda settings: Reporting({1: "A tip."}))
"""


@pytest.mark.parametrize(
    "how", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_served_process_answers_and_ends_its_model_server_when_asked_to_end(
    tmp_path, model_folder, how
):
    port = free_port()
    settings = tmp_path / "reactune.toml"
    settings.write_text(f"[serve]\nport = {port}\n[store]\nurl = 'sqlite:///store.db'\n")
    engine = create_store(f"sqlite:///{tmp_path / 'store.db'}")
    set_champion(engine, version(1, model_folder))
    script, closed = tmp_path / "script.py", tmp_path / "closed"
    script.write_text(SERVE)
    environ = {**os.environ, "REACTUNE_KEY": "k" * 32, "PYTHONPATH": os.pathsep.join(PATHS)}
    with subprocess.Popen(
        [sys.executable, script, settings, closed], env=environ, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            wait_until(lambda: answers(f"http://127.0.0.1:{port}/readyz"), process=process)
            answer = httpx.post(f"http://127.0.0.1:{port}/v1/tips", json=tip_body(user="u-5-raw"))
            process.send_signal(how)
            _, log = process.communicate(timeout=30)
        finally:
            process.kill()
    assert answer.json()["content"] == "A tip."
    assert (process.returncode, closed.read_text()) == (0, "closed")
    assert "u-5-raw" not in log
    assert len(rows_of(engine)) == 1
    engine.dispose()


def test_without_a_key_nothing_is_served(tmp_path, monkeypatch):
    from reactune.config.settings import Config
    from reactune.errors import PrivacyError
    from reactune.web.server import serve

    monkeypatch.delenv("REACTUNE_KEY", raising=False)
    with pytest.raises(PrivacyError, match="REACTUNE_KEY"):
        serve(Config(folder=tmp_path), lambda settings: ModelServer({}))


@pytest.mark.parametrize("user", ["u1", "anna@example.com", "a/b?c", "\u00fc \u20ac"])
def test_an_erased_user_is_erased_from_the_database_at_once(engine, client, user):
    set_champion(engine)
    for who in (user, "another"):
        assert client.post("/v1/tips", json=tip_body(user=who)).status_code == 200
    answer = client.delete(f"/v1/users/{quote(user, safe='')}")
    assert answer.status_code == 202
    with reading(engine) as connection:
        (erasure,) = open_erasures(connection)
    assert answer.json() == {"erasure": erasure.erasure_id}
    assert (erasure.actor, next(iter(erasure.marks))) == ("service", user_key(KEY, user))
    [row] = rows_of(engine)
    assert row["user_key"] == user_key(KEY, "another")


@pytest.mark.parametrize("spelling", ["zoe\u0308-7", "zo\u00eb-7 ", "\ufeffzo\u00eb-7"])
def test_another_spelling_of_an_id_is_the_same_person_at_every_door(engine, client, spelling):
    set_champion(engine)
    assert client.post("/v1/tips", json=tip_body(user="zo\u00eb-7")).status_code == 200
    path = f"/v1/users/{quote(spelling, safe='')}"
    assert client.put(f"{path}/training", json={"allowed": False}).status_code == 204
    assert client.post("/v1/tips", json=tip_body(user=spelling)).status_code == 200
    units = {client.get("/v1/route", params={"user": user}).json()["unit_key"]
             for user in (spelling, "zo\u00eb-7")}  # fmt: skip
    rows = rows_of(engine)
    assert len(units) == len({row["user_key"] for row in rows}) == 1
    assert sorted(row["training_allowed"] for row in rows) == [False, True]
    assert client.delete(path).status_code == 202
    assert rows_of(engine) == []


@pytest.mark.parametrize("path", ["zo%EB", "%20", "%EF%BB%BF"])
def test_a_path_without_a_readable_id_is_refused(client, path):
    assert client.delete(f"/v1/users/{path}").status_code == 422


def test_a_user_that_the_app_did_not_know_is_refused_but_can_be_erased(engine, client):
    set_champion(engine)
    answers = [
        client.post("/v1/tips", json=tip_body(user="undefined")),
        client.put("/v1/users/undefined/training", json={"allowed": False}),
        client.get("/v1/route", params={"user": "undefined"}),
    ]
    assert [each.status_code for each in answers] == [422] * 3
    assert all("look where the app reads the id" in each.json()["error"] for each in answers)
    assert rows_of(engine) == []
    assert client.delete("/v1/users/undefined").status_code == 202


def test_a_reaction_to_a_tip_that_was_erased_is_that_of_an_unknown_tip(engine, client):
    set_champion(engine)
    tip_id = client.post("/v1/tips", json=tip_body()).json()["tip_id"]
    assert client.delete("/v1/users/u1").status_code == 202
    reaction = {"tip_id": tip_id, "reaction": "done", "dwell_ms": 20_000}
    assert client.post("/v1/reactions", json=reaction).status_code == 404


def test_a_tip_that_was_written_while_its_user_was_erased_is_not_given(engine, client):
    set_champion(engine)
    assert client.delete("/v1/users/u1").status_code == 202
    answer = client.post("/v1/tips", json=tip_body())
    assert answer.status_code == 422
    assert "erased while their tip was written" in answer.json()["error"]
    assert rows_of(engine) == []


def test_a_user_decides_whether_later_models_learn_from_them(engine, client):
    set_champion(engine)
    for allowed in (False, True):
        answer = client.put("/v1/users/u1/training", json={"allowed": allowed})
        assert (answer.status_code, answer.content) == (204, b"")
        assert client.post("/v1/tips", json=tip_body()).status_code == 200
    rows = sorted(rows_of(engine), key=lambda row: row["training_allowed"])
    assert [row["training_allowed"] for row in rows] == [False, True]


@pytest.mark.parametrize("body", [{}, {"allowed": "no"}, {"allowed": 0}, {"allowed": True, "x": 1}])
def test_a_decision_that_is_none_is_refused(engine, client, body):
    answer = client.put("/v1/users/my-secret-words/training", json=body)
    assert answer.status_code == 422
    assert SECRET not in answer.text
