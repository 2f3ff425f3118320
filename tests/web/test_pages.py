"""The pages over a real database: who sees what, who may do what, and what other sites may not."""

import csv
import io
import json
import re
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from threading import Barrier

import httpx
import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from loop_fixtures import copy_of_trained
from page_fixtures import ADDRESS, GONE, HOSTILE, NOW, client_of, fill, review, world
from reactune.config.sections import CanaryConfig
from reactune.config.settings import Config
from reactune.erasure import requests
from reactune.pages import pictures
from reactune.runs.folders import all_runs
from reactune.runs.manifest import recorded_manifest
from reactune.service.api_keys import revoke_key
from reactune.service.sessions import LASTS
from reactune.service.state import close_service
from reactune.store.database import opened_store, reading, writing
from reactune.store.queries import current_rollout, upsert_scores
from reactune.store.schema import decisions, page_actions, page_sessions
from reactune.web.access import Bucket
from reactune.web.api import create_app
from reactune.web.pages import KEPT_SECONDS, PAGES, Pages
from score_fixtures import row
from serving_fixtures import ModelServer, listening, service_of, set_champion

PATHS = tuple(PAGES.values())
RUN = "/runs/20261117-080000-0000"


@pytest.fixture
def empty(store_url, chat):
    """Pages over a database in which nothing has happened, on SQLite and PostgreSQL."""
    with world(store_url, chat) as made:
        yield made


@pytest.fixture
def full(sqlite_url, chat):
    """Pages over a database with a challenger on trial, runs and erasures."""
    with world(sqlite_url, chat) as made:
        fill(made)
        yield made


def text_of(page):
    """What a page says, without its tags."""
    return " ".join(re.sub(r"<[^>]+>", " ", page.text).split())


def token_in(page):
    return re.search(r'name="csrf" value="([0-9a-f]{64})"', page.text)[1]


def actions_of(engine):
    query = sa.select(page_actions).order_by("action_id")
    with engine.connect() as connection:
        rows = connection.execute(query).mappings().all()
    return [(row["action"], row["outcome"]) for row in rows]


def open_action(client, action="promote"):
    """The fields of the form that asks for a confirmation."""
    page = client.get(f"/rollout/{action}")
    rollout = re.search(r'name="rollout" value="([^"]+)"', page.text)[1]
    return {"csrf": token_in(page), "rollout": rollout, "reason": "looks better to us"}


@pytest.mark.parametrize("path", PATHS)
def test_before_there_is_a_key_pages_are_open_to_this_machine_with_every_button_off(empty, path):
    with client_of(empty) as client:
        page = client.get(path)
    assert page.status_code == 200
    assert "reactune keys create" in text_of(page)
    assert 'name="csrf" value=""' in page.text or "csrf" not in page.text


@pytest.mark.parametrize("path", [*PATHS, RUN])
def test_every_page_of_a_full_database_forbids_scripts_frames_and_caches(full, path):
    with client_of(full) as client:
        page = client.get(path)
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert page.headers["cache-control"] == "no-store"
    assert "<script" not in page.text
    assert not re.search(r"\son\w+=|\sstyle=|javascript:", page.text)
    assert re.findall(r'(?:src|href)="(?:https?:)?//[^"]*"', page.text) == []


def test_without_a_key_no_form_is_taken(full):
    with client_of(full) as client:
        for path in ("/rollout/promote", "/rollout/stop", "/people", "/logout"):
            assert client.post(path, data={"user": "u", "csrf": ""}).status_code == 401
    assert actions_of(full.engine) == []


def test_a_name_of_another_site_that_leads_here_is_no_way_in(full):
    with client_of(full) as client:
        answer = client.get("/people", headers={"host": "evil.example:8765"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")


@pytest.mark.parametrize("header", ["x-forwarded-for", "forwarded", "via"])
def test_what_a_proxy_passes_on_is_not_from_this_machine(full, header):
    with client_of(full) as client:
        assert client.get("/").status_code == 200
        assert client.get("/", headers={header: "203.0.113.7"}).status_code == 303


def test_once_there_is_a_key_every_page_asks_for_a_login(full):
    full.key("app")
    with client_of(full) as client:
        answers = [client.get(path) for path in (*PATHS, RUN, "/rollout/stop")]
    assert {(each.status_code, each.headers["location"]) for each in answers} == {(303, "/login")}


@pytest.mark.parametrize(
    ("host", "auth"), [("0.0.0.0", "auto"), ("0.0.0.0", "off"), ("127.0.0.1", "required")]
)
def test_a_service_that_others_reach_has_no_open_pages(sqlite_url, chat, host, auth):
    with world(sqlite_url, chat, host=host, auth=auth) as made, client_of(made) as client:
        assert client.get("/").status_code == 303


@pytest.mark.parametrize("scopes", [("app",), ("content",), ("app", "content")])
def test_a_key_without_a_scope_for_pages_cannot_log_in(full, scopes):
    token = full.key(*scopes)
    with client_of(full) as client:
        answer = client.post("/login", data={"key": token})
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("text", ["", "rt_wrong", "rt_1f2e3d4c_" + "x" * 43, "ü" * 100])
def test_a_wrong_key_cannot_log_in_and_is_not_repeated(full, text):
    full.key("read")
    with client_of(full) as client:
        answer = client.post("/login", data={"key": text})
    assert answer.status_code == 401
    assert not text or text not in answer.text
    assert "set-cookie" not in answer.headers


def test_logins_are_bounded(full, monkeypatch):
    take = Bucket.take
    # The clock stands still, so that no token comes back on a busy machine.
    monkeypatch.setattr(Bucket, "take", lambda self, now, *, rate: take(self, 0.0, rate=rate))
    full.key("read")
    with client_of(full) as client:
        answers = [client.post("/login", data={"key": "rt_wrong"}) for _ in range(6)]
    assert [each.status_code for each in answers] == [401] * 4 + [429] * 2
    assert answers[-1].headers["retry-after"] == "1"


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(full):
    token = full.key("read")
    with client_of(full) as client:
        cookie = client.post("/login", data={"key": token}).headers["set-cookie"]
        secure = client.post("https://127.0.0.1:8765/login", data={"key": token}).headers[
            "set-cookie"
        ]
    assert {"HttpOnly", "SameSite=lax", "Path=/"} <= set(cookie.split("; "))
    assert "Secure" not in cookie
    assert secure.startswith("__Host-")
    assert {"HttpOnly", "SameSite=lax", "Path=/", "Secure"} <= set(secure.split("; "))


def test_a_reader_sees_pages_and_may_do_nothing(full):
    with client_of(full, full.key("read")) as client:
        page = client.get("/rollout")
        assert page.status_code == 200
        assert page.text.count("disabled>") == 3
        assert client.get("/rollout/promote").status_code == 403
        fields = {"csrf": token_in(page), "rollout": "any", "reason": "r"}
        assert client.post("/rollout/promote", data=fields).status_code == 403
    assert actions_of(full.engine) == [("log in", "done")]


def test_an_operator_promotes_with_a_reason_that_is_stored(full):
    token = full.key("operator", name="Olga")
    with client_of(full, token) as client:
        fields = open_action(client)
        answer = client.post("/rollout/promote", data=fields)
        assert (answer.status_code, answer.headers["location"]) == (303, "/rollout?done=promote")
        page = text_of(client.get("/rollout?done=promote"))
        assert "Olga" in text_of(client.get("/keys"))
    assert "Promoted" in page
    assert "version 2 was better" in page
    with reading(full.engine) as connection:
        live = current_rollout(connection)
        query = sa.select(decisions).order_by(decisions.c.decision_id.desc()).limit(1)
        last = connection.execute(query).mappings().one()
    assert (live.champion, live.challenger) == (2, None)
    assert (last["actor"], last["verdict"], last["reason"]) == (
        "hand", "promote", "looks better to us",
    )  # fmt: skip
    assert json.loads(last["numbers_json"]) == {"key": token.split("_")[1]}
    assert actions_of(full.engine)[-1] == ("promote", "done")


@pytest.mark.parametrize("action", ["roll-back", "stop"])
def test_an_operator_withdraws_the_challenger(full, action):
    with client_of(full, full.key("operator")) as client:
        fields = open_action(client, action)
        if action == "stop":
            fields["reason"] = ""
        answer = client.post(f"/rollout/{action}", data=fields)
        assert answer.headers["location"] == f"/rollout?done={action}"
        assert "No model is on trial" in text_of(client.get("/rollout/promote"))
    with reading(full.engine) as connection:
        live = current_rollout(connection)
    assert (live.champion, live.challenger) == (1, None)
    assert actions_of(full.engine)[-1] == (action.replace("-", " "), "done")


def test_a_promotion_without_a_reason_asks_for_one(full):
    with client_of(full, full.key("operator")) as client:
        answer = client.post("/rollout/promote", data=open_action(client) | {"reason": "  "})
    assert answer.status_code == 422
    assert "Give a reason" in answer.text
    with reading(full.engine) as connection:
        assert current_rollout(connection).challenger == 2


def test_of_two_operators_the_second_is_told_that_it_has_ended(full):
    one, other = full.key("operator", name="one"), full.key("operator", name="other")
    with client_of(full, one) as first, client_of(full, other) as second:
        fields = open_action(second, "roll-back")
        assert first.post("/rollout/promote", data=open_action(first)).status_code == 303
        answer = second.post("/rollout/roll-back", data=fields)
    assert answer.status_code == 409
    assert "ended meanwhile" in answer.text
    with reading(full.engine) as connection:
        assert current_rollout(connection).champion == 2
    assert actions_of(full.engine)[-1] == ("roll back", "nothing: it had ended")


def test_of_two_operators_at_the_same_moment_one_decides(store_url, chat):
    with world(store_url, chat) as made:
        fill(made, tips=300, reviews=1)
        keys = {"promote": made.key("operator"), "roll-back": made.key("operator")}
        with listening(made.app) as address, ThreadPoolExecutor(2) as pool:
            together = Barrier(2)

            def press(action):
                with httpx.Client(base_url=address, trust_env=False, timeout=60) as client:
                    client.post("/login", data={"key": keys[action]})
                    fields = open_action(client, action)
                    together.wait(60)
                    return client.post(f"/rollout/{action}", data=fields).status_code

            statuses = dict(zip(keys, pool.map(press, keys), strict=True))
        with reading(made.engine) as connection:
            live = current_rollout(connection)
        done = actions_of(made.engine)[-2:]
    assert sorted(statuses.values()) == [303, 409]
    winner = min(statuses, key=statuses.get)
    assert (live.champion, live.challenger) == ({"promote": 2, "roll-back": 1}[winner], None)
    assert sorted(outcome for _, outcome in done) == ["done", "nothing: it had ended"]


def test_an_action_on_a_rollout_of_before_does_nothing(full):
    with client_of(full, full.key("operator")) as client:
        fields = open_action(client) | {"rollout": "20250101-000000-old"}
        assert client.post("/rollout/promote", data=fields).status_code == 409
    with reading(full.engine) as connection:
        assert current_rollout(connection).challenger == 2


@pytest.mark.parametrize(
    "headers",
    [{"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"},
     {"origin": "https://evil.example"}, {"origin": "null"}],
)  # fmt: skip
def test_a_form_of_another_site_is_not_taken(full, headers):
    with client_of(full, full.key("operator")) as client:
        fields = open_action(client)
        assert client.post("/rollout/promote", data=fields, headers=headers).status_code == 403
        login = client.post("/login", data={"key": "rt_x"}, headers=headers)
        assert login.status_code == 403
    with reading(full.engine) as connection:
        assert current_rollout(connection).challenger == 2


@pytest.mark.parametrize("csrf", ["", "0" * 64, "ü"])
def test_a_form_without_the_session_s_token_is_not_taken(full, csrf):
    with client_of(full, full.key("operator")) as client:
        fields = open_action(client) | {"csrf": csrf}
        assert client.post("/rollout/promote", data=fields).status_code == 403
        as_json = client.post("/rollout/promote", json=open_action(client))
        assert as_json.status_code == 403


def test_a_token_of_another_session_is_not_taken(full):
    key = full.key("operator")
    with client_of(full, key) as one, client_of(full, key) as other:
        fields = open_action(one) | {"csrf": token_in(other.get("/rollout/promote"))}
        assert one.post("/rollout/promote", data=fields).status_code == 403


def test_a_session_ends_with_its_time_with_its_key_and_with_a_log_out(full):
    token = full.key("read")
    with client_of(full, token) as client:
        full.set_now(NOW + LASTS)
        assert client.get("/").status_code == 303
        full.set_now(NOW)
        page = client.get("/")
        assert page.status_code == 200
        assert client.post("/logout", data={"csrf": token_in(page)}).status_code == 303
        assert client.get("/").status_code == 303
    with client_of(full, token) as client:
        revoke_key(full.engine, token.split("_")[1], now=NOW)
        keys = next(each for each in _pages_of(full) if isinstance(each, Pages)).keys
        keys.refresh()
        assert client.get("/").status_code == 303


def _pages_of(made):
    """The pages of an app, out of the functions of its routes."""
    for route in made.app.routes:
        for cell in getattr(getattr(route, "endpoint", None), "__closure__", None) or ():
            yield cell.cell_contents


def test_texts_are_shown_to_the_scope_for_them_alone_and_never_as_html(full):
    scopes = {"read": ("read",), "operator": ("operator",), "content": ("read", "content")}
    pages = {}
    for name, of_key in scopes.items():
        with client_of(full, full.key(*of_key)) as client:
            pages[name] = [client.get(path).text for path in (*PATHS, RUN)]
    for name in ("read", "operator"):
        assert not any("alert(" in page or "Tip number" in page for page in pages[name])
    assert any("&lt;script&gt;alert(" in page for page in pages["content"])
    everything = [page for each in pages.values() for page in each]
    assert not any(HOSTILE in page or "<script" in page or "<img" in page for page in everything)
    assert not any("secret diary" in page for page in everything)


def test_a_run_shows_rewards_before_and_after_and_candidates_to_who_may_see_texts(full):
    for scopes, is_shown in ((("read",), False), (("read", "content"), True)):
        with client_of(full, full.key(*scopes)) as client:
            run, rollout = client.get(RUN), client.get("/rollout")
        said = text_of(run)
        assert "Rewards before and after" in said
        assert "base 98 % -0.12 11.5" in said
        assert "tuned 98 % +0.74 11.5" in said
        assert "Learning curve" in said
        for page in (run, rollout):
            assert ('id="candidates"' in page.text) == is_shown
            if is_shown:
                rows = re.search(r'<table id="candidates">.*?</table>', page.text, re.S)[0]
                assert rows.count("<tr>") == 1 + 3 * 3
                assert "+0.50" in rows
                assert "(refused: empty)" in rows


def test_somebody_is_looked_up_by_an_id_that_is_neither_shown_stored_nor_logged(
    full, caplog, sqlite_url
):
    caplog.set_level("DEBUG")
    with client_of(full, full.key("read")) as client:
        token = token_in(client.get("/people"))
        found = client.post("/people", data={"user": f" {GONE} ", "csrf": token})
        other = client.post("/people", data={"user": "user-9", "csrf": token})
        nobody = client.post("/people", data={"user": "  ", "csrf": token})
    said = text_of(found)
    assert "asked to be forgotten 2026-11-26 09:30" in said
    assert "not done, left: runs and datasets" in said
    assert "asked to be forgotten no" in text_of(other)
    assert re.search(r"tips stored \d+ tip", text_of(other))
    assert nobody.status_code == 422
    assert GONE not in found.text
    assert "user-9" not in other.text
    assert GONE not in caplog.text
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))) as connection:
        dump = "\n".join(connection.iterdump())
    assert GONE not in dump
    assert "user-9" not in dump
    assert actions_of(full.engine)[1:] == [
        ("look up", "found"), ("look up", "found"), ("look up", "no id"),
    ]  # fmt: skip


def test_who_asked_to_be_forgotten_and_what_is_left(full):
    with reading(full.engine) as connection:
        first = requests.all_erasures(connection)[0]
    with writing(full.engine) as connection:
        requests.close(connection, [first], now=NOW)
    with client_of(full) as client:
        people, overview = text_of(client.get("/people")), text_of(client.get("/"))
    assert re.search(rf"{first.erasure_id} 2026-11-19 09:30 1 user letter by hand", people)
    assert "done 2026-11-27 09:30 nothing" in people
    assert "not done runs and datasets, models marked" in people
    assert "1 erasure not done everywhere" in overview
    assert "tip-generator" not in overview or "2026-12-17" in overview


def test_every_table_is_there_as_csv_without_formulas(full):
    with client_of(full) as client:
        for path in (*PATHS, RUN):
            page = client.get(path)
            for name in re.findall(r'\?csv=([\w-]+)"', page.text):
                answer = client.get(path, params={"csv": name})
                assert answer.headers["content-type"].startswith("text/csv")
                rows = list(csv.reader(io.StringIO(answer.text)))
                assert len({len(row) for row in rows}) == 1
                assert len(rows) > 1
                assert not any(re.match(r"[=@+]\D|-[^\d.]", cell) for row in rows for cell in row)
        assert client.get("/", params={"csv": "passwords"}).status_code == 404


def test_numbers_on_the_pages_are_those_of_the_rows(full, sqlite_url):
    query = (
        "SELECT count(shown_at), sum(reaction = 'done'), sum(reaction = 'dismiss') "
        "FROM tip_scores WHERE kind = 'focus'"
    )
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))) as connection:
        shown, done, dismissed = connection.execute(query).fetchone()
    with client_of(full) as client:
        answer = client.get("/reactions", params={"csv": "kinds"})
    rows = {row["kind"]: row for row in csv.DictReader(io.StringIO(answer.text))}
    assert (int(rows["focus"]["shown"]), int(rows["focus"]["done"])) == (shown, done)
    assert int(rows["focus"]["dismissed"]) == dismissed


def test_a_proposal_waits_on_the_rollout_page_and_the_overview(sqlite_url, chat):
    with world(sqlite_url, chat) as made:
        opened = fill(made, tips=3_000, lift=0.3, reviews=1)
        asks = CanaryConfig(**{**made.config.canary.model_dump(), "decides": "propose"})
        decision = review(made, opened, NOW, settings=asks)
        assert "promote is proposed" in decision.reason
        with client_of(made, made.key("operator")) as client:
            rollout, overview = text_of(client.get("/rollout")), text_of(client.get("/"))
    assert "The review proposes: promote" in rollout
    assert "Yes: the new model is better." in rollout
    assert "A person decides now: promote is proposed" in overview


def test_settings_hide_passwords_and_show_what_is_not_the_default(sqlite_url, chat):
    config = Config(store={"url": "postgresql://me:hunter2@db/tips"}, train={"lora_rank": 4})
    with world(sqlite_url, chat) as made:
        for each in _pages_of(made):
            if isinstance(each, Pages):
                each.config = config
        with client_of(made) as client:
            page = client.get("/settings").text
    assert "hunter2" not in page
    assert "postgresql://me:***@db/tips" in page
    assert re.search(r'<span class="mark wait">4</span>', page)


def test_an_unknown_page_is_not_found_and_names_nothing_that_was_sent(full):
    with client_of(full) as client:
        for path in ("/runs/nobody-knows", "/keys/nobody-knows", "/rollout/nobody-knows"):
            answer = client.get(path)
            assert answer.status_code in (404, 422)
            assert "nobody-knows" not in answer.text
            assert "content-security-policy" in answer.headers


def test_above_the_rate_pages_are_refused_in_html(sqlite_url, chat):
    with world(sqlite_url, chat) as made:
        made.service.settings.__dict__["requests_per_second"] = 0.5
        with client_of(made) as client:
            answers = [client.get("/") for _ in range(2)]
    assert [each.status_code for each in answers] == [200, 429]
    assert answers[1].headers["content-type"].startswith("text/html")


def test_pages_are_no_part_of_the_described_api(full):
    with client_of(full) as client:
        paths = client.get("/openapi.json").json()["paths"]
    assert all(path.startswith(("/v1/", "/metrics", "/healthz", "/readyz")) for path in paths)


def test_the_cookie_opens_no_path_of_the_api(full):
    with client_of(full, full.key("operator")) as client:
        assert client.post("/v1/rollouts/current/stop").status_code == 401
        assert client.get("/metrics").status_code == 401


def test_without_the_extra_the_tables_stand_alone(full, monkeypatch):
    monkeypatch.setattr("reactune.pages.pictures.is_installed", lambda: False)
    with client_of(full) as client:
        for path in ("/", "/reactions", "/rollout", RUN):
            page = client.get(path).text
            assert "<svg" not in page
            assert "<table" in page


def test_what_draws_is_started_while_somebody_pastes_a_key(full):
    pictures._drawn.cache_clear()
    full.key("read")
    with client_of(full) as client:
        assert client.get("/login").status_code == 200
    assert pictures._drawn.cache_info().currsize == 1


def test_sessions_in_the_database_are_hashes(full):
    with client_of(full, full.key("read")) as client:
        cookie = client.cookies["reactune_session"]
    with full.engine.connect() as connection:
        (row,) = connection.execute(sa.select(page_sessions)).mappings()
    assert cookie not in str(dict(row))
    assert row["expires_at"] == NOW + LASTS


def test_an_idle_service_says_when_the_next_model_comes(empty):
    set_champion(empty.engine)
    with client_of(empty) as client:
        page = text_of(client.get("/"))
    assert "There is no new model on trial." in page
    assert "Version 1 answers everybody" in page
    assert ADDRESS not in page
    empty.set_now(NOW + timedelta(days=1))


def test_a_real_run_is_shown_with_its_figures(tmp_path, chat):
    config = copy_of_trained(tmp_path)
    (run,) = all_runs(config.run_root)
    gate = json.loads((run / "evaluate" / "gate.json").read_text())
    manifest = recorded_manifest(run / "dataset")
    with opened_store(config.store_url) as engine:
        service = service_of(engine, chat, ModelServer({1: "a", 2: "b"}))
        app = create_app(service, config)
        with TestClient(app, base_url=ADDRESS, client=("127.0.0.1", 50_000)) as client:
            page = client.get(f"/runs/{run.name}")
            said = text_of(page)
            rows = list(csv.reader(io.StringIO(client.get(f"/runs/{run.name}?csv=files").text)))
            models = text_of(client.get("/models"))
            overview = client.get("/")
        close_service(service)
    assert (page.status_code, overview.status_code) == (200, 200)
    for each in gate["rows"]:
        shown = each["accuracy"]
        assert f"{shown['value']:.3f} [{shown['low']:.3f}, {shown['high']:.3f}]" in said
    assert manifest.counts["fingerprint"][:12] in said
    assert manifest.counts["fingerprint"][:12] in models
    digests = dict(rows[1:])
    assert digests["dataset/README.md"] == manifest.outputs["README.md"]


def test_while_the_database_is_away_pages_say_so_and_are_no_json(full, sqlite_url):
    with client_of(full, full.key("read")) as client:
        full.engine.dispose()
        file = Path(sqlite_url.removeprefix("sqlite:///"))
        kept = file.read_bytes()
        for each in file.parent.glob(f"{file.name}*"):
            each.unlink()
        file.write_bytes(b"no database at all " * 1_000)
        answer = client.get("/people")
        full.engine.dispose()
        file.write_bytes(kept)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "database does not answer" in answer.text


def test_new_reactions_show_within_seconds(full):
    pages = next(each for each in _pages_of(full) if isinstance(each, Pages))
    now = [100.0]
    pages.clock = lambda: now[0]

    def shown(client):
        rows = csv.DictReader(io.StringIO(client.get("/reactions?csv=versions").text))
        return sum(int(row["shown"]) for row in rows)

    with client_of(full) as client:
        before = shown(client)
        with writing(full.engine) as connection:
            upsert_scores(connection, [row("new", created_at=NOW)])
        now[0] += KEPT_SECONDS / 2
        assert shown(client) == before
        now[0] += KEPT_SECONDS
        assert shown(client) == before + 1
