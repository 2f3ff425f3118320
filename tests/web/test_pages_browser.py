"""The pages in a real browser: what is seen, pressed and read aloud, at phone and desktop width.

On SQLite always; the same on PostgreSQL, and over a million tips on both, with the slow tests.
`REACTUNE_SCREENSHOTS=FOLDER` keeps pictures of the pages there: `pages-overview.png` and
`pages-rollout.png` are those of README and docs.
"""

import contextlib
import csv
import json
import os
import shutil
from datetime import UTC, datetime, time
from pathlib import Path

import pytest
import sqlalchemy as sa

from page_fixtures import NOW, fill, many_tips, review, world
from places import TESTS
from reactune.config.sections import CanaryConfig
from reactune.pages.facts import days_ago
from reactune.store.database import reading
from reactune.store.labels import label_rule
from reactune.store.queries import current_rollout
from reactune.store.schema import tip_scores
from reactune.store.summaries import recount
from reactune.web.pages import DAYS_SHOWN, PAGES
from serving_fixtures import listening

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
AXE = TESTS / "web" / "vendor" / "axe.min.js"
RUN = "/runs/20261117-080000-0000"
PATHS = (*PAGES.values(), RUN, "/login", "/rollout/promote", "/rollout/stop")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
SERIOUS = ("serious", "critical")
MANY = 1_000_000
SLOW_POSTGRES = (pytest.mark.postgres, pytest.mark.slow)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium, driven by Playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield chromium
        chromium.close()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=SLOW_POSTGRES)])
def database(request):
    """An empty database of either kind; that on PostgreSQL is for the slow tests."""
    name = {"sqlite": "sqlite_url", "postgres": "fresh_postgres_url"}[request.param]
    return request.getfixturevalue(name)


@pytest.fixture
def served(database, chat):
    """A world with a rollout, its address, and a key that may everything."""
    with world(database, chat) as made:
        fill(made)
        token = made.key("read", "operator", "content", name="Olga")
        with listening(made.app) as address:
            made.address, made.token = address, token
            yield made


@contextlib.contextmanager
def tab(browser, address, token="", *, size=DESKTOP, scheme="light"):
    """A tab, logged in if a key is given; there is no error in its console at the end."""
    context = browser.new_context(base_url=address, viewport=size, color_scheme=scheme)
    page, errors = context.new_page(), []
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.errors = errors
    try:
        if token:
            log_in(page, token)
        yield page
        assert errors == []
    finally:
        context.close()


def log_in(page, token):
    page.goto("/login")
    page.get_by_label("Key").fill(token)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url("**/")


def findings(page):
    """What axe finds that keeps somebody out: rule, and the first element."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run()")["violations"]
    return [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in SERIOUS]


def is_wider_than_the_screen(page):
    return page.evaluate("document.documentElement.scrollWidth > window.innerWidth")


def keep(page, name):
    """A picture of the page, where somebody asks for it."""
    if folder := os.environ.get("REACTUNE_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


def name_of(path):
    return path.strip("/").replace("/", "-") or "overview"


@pytest.mark.parametrize(
    ("size", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")], ids=["desktop", "phone"]
)
def test_every_page_of_a_rollout_is_readable_by_everybody(browser, served, size, scheme):
    with tab(browser, served.address, served.token, size=size, scheme=scheme) as page:
        for path in PATHS:
            assert page.goto(path).status == 200
            assert page.get_by_role("heading", level=1).count() == 1, path
            assert not is_wider_than_the_screen(page), path
            assert findings(page) == [], path
            keep(page, f"{name_of(path)}-{scheme}")


def test_every_page_of_an_empty_database_is_readable_by_everybody(browser, database, chat):
    with (
        world(database, chat) as made,
        listening(made.app) as address,
        tab(browser, address, size=PHONE) as page,
    ):
        for path in PAGES.values():
            assert page.goto(path).status == 200
            assert page.get_by_role("button", disabled=False).count() == 0
            assert not is_wider_than_the_screen(page), path
            assert findings(page) == [], path


@pytest.mark.slow
def test_every_page_of_a_million_tips_is_readable_by_everybody(browser, served):
    many_tips(served.engine, MANY)
    recount(served.engine, label_rule(served.config.labels), now=NOW)
    with tab(browser, served.address, served.token, size=PHONE) as page:
        for path in PATHS:
            assert page.goto(path).status == 200
            assert not is_wider_than_the_screen(page), path
            assert findings(page) == [], path
        page.goto("/reactions")
        with page.expect_download() as download:
            page.locator('a[download="kinds.csv"]').click()
        kinds = csv.DictReader(Path(download.value.path()).read_text("utf-8").splitlines())
        shown = sum(int(each["shown"]) for each in kinds)
    with reading(served.engine) as connection:
        row, since = tip_scores.c, days_ago(NOW, DAYS_SHOWN - 1)
        of_days = row.created_at >= datetime.combine(since, time(), UTC)
        query = sa.select(sa.func.count()).where(of_days, row.shown_at.is_not(None))
        assert shown == connection.execute(query).scalar_one() > MANY / 4


def test_a_stranger_reads_the_four_answers(browser, served):
    with tab(browser, served.address, served.token) as page:
        answer = page.locator(".answer")
        assert "Is the new model better?" in answer.inner_text()
        assert "Not known yet" in answer.locator(".big").inner_text()
        assert "wrong with a chance of at most 5" in answer.inner_text()
        assert "a verdict" in answer.inner_text()
        page.get_by_role("link", name="People", exact=True).click()
        assert "not done" in page.locator("#erasures").inner_text()


def test_an_operator_promotes_with_keyboard_alone(browser, served):
    with tab(browser, served.address, served.token) as page:
        page.goto("/rollout")
        page.get_by_role("link", name="Promote").focus()
        page.keyboard.press("Enter")
        page.wait_for_url("**/rollout/promote")
        page.get_by_label("Reason").focus()
        page.keyboard.type("it is liked more")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_url("**/rollout?done=promote")
        assert "Promoted" in page.get_by_role("status").inner_text()
        assert "Yes: version 2 was better" in page.locator(".big").inner_text()
    with reading(served.engine) as connection:
        assert current_rollout(connection).champion == 2


@pytest.mark.parametrize(
    ("button", "said"), [("Roll back", "Rolled back"), ("Stop now", "Stopped")]
)
def test_an_operator_withdraws_a_model(browser, served, button, said):
    with tab(browser, served.address, served.token) as page:
        page.goto("/rollout")
        page.get_by_role("link", name=button).click()
        if button == "Roll back":
            page.get_by_role("button", name=button).click()  # the browser asks for the reason
            assert page.url.endswith("/rollout/roll-back")
            page.get_by_label("Reason").fill("too many dismissals")
        page.get_by_role("button", name=button).click()
        page.wait_for_url("**/rollout?done=*")
        assert said in page.get_by_role("status").inner_text()


def test_who_does_nothing_changes_nothing(browser, served):
    with tab(browser, served.address, served.token) as page:
        page.goto("/rollout/promote")
        page.get_by_role("link", name="Do nothing").click()
        page.wait_for_url("**/rollout")
    with reading(served.engine) as connection:
        assert current_rollout(connection).challenger == 2


def test_somebody_is_looked_up_and_the_id_stays_out_of_the_address(browser, served):
    with tab(browser, served.address, served.token) as page:
        page.goto("/people")
        page.get_by_label("The app's id of the user").fill("gone@example.org")
        page.get_by_role("button", name="Look up").click()
        assert "not done" in page.locator("#person").inner_text()
        assert "gone" not in page.url
        assert "gone@example.org" not in page.content()


def test_a_wrong_key_is_refused_and_a_log_out_ends_the_session(browser, served):
    context = browser.new_context(base_url=served.address)
    page = context.new_page()
    page.goto("/")
    assert page.url.endswith("/login")
    page.get_by_label("Key").fill("rt_wrong")
    page.get_by_role("button", name="Log in").click()
    assert "no valid key" in page.get_by_role("alert").inner_text()
    log_in(page, served.token)
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url("**/login")
    page.goto("/people")
    assert page.url.endswith("/login")
    context.close()


def test_a_reader_finds_every_button_off_and_no_other_way(browser, served):
    context = browser.new_context(base_url=served.address)
    page = context.new_page()
    log_in(page, served.key("read"))
    page.goto("/rollout")
    for name in ("Promote", "Roll back", "Stop now"):
        assert page.get_by_role("button", name=name).is_disabled()
        assert page.get_by_role("link", name=name).count() == 0
    assert "scope operator" in page.locator("main").inner_text()
    assert "Texts of tips are shown to keys with the scope content only" in page.content().replace(
        "<code>content</code>", "content"
    )
    csrf = page.locator('input[name="csrf"]').first.get_attribute("value")
    with reading(served.engine) as connection:
        rollout = current_rollout(connection).rollout_id
    for action in ("promote", "roll-back", "stop"):
        assert page.goto(f"/rollout/{action}").status == 403
        assert "scope operator" in page.locator("main").inner_text()
        form = {"csrf": csrf, "rollout": rollout, "reason": "r"}
        answer = page.request.post(f"/rollout/{action}", form=form)
        assert answer.status == 403
    context.close()
    with reading(served.engine) as connection:
        assert current_rollout(connection).challenger == 2


def test_without_a_key_every_page_leads_to_the_login(browser, served):
    with tab(browser, served.address) as page:
        for path in PATHS:
            page.goto(path)
            assert page.url.endswith("/login"), path
    context = browser.new_context(base_url=served.address)
    for action in ("promote", "roll-back", "stop"):
        answer = context.request.post(f"/rollout/{action}", form={"csrf": "", "rollout": "r"})
        assert answer.status == 401
    context.close()
    with reading(served.engine) as connection:
        assert current_rollout(connection).challenger == 2


def test_of_two_operators_at_once_the_second_is_told_that_it_has_ended(browser, served):
    first = browser.new_context(base_url=served.address).new_page()
    second = browser.new_context(base_url=served.address).new_page()
    for page, action in ((first, "promote"), (second, "roll-back")):
        log_in(page, served.token)
        page.goto(f"/rollout/{action}")
        page.get_by_label("Reason").fill(f"{action} is right")
    first.get_by_role("button", name="Promote").click()
    second.get_by_role("button", name="Roll back").click()
    second.wait_for_function("document.title.startsWith('Nothing was done')")
    assert "ended meanwhile" in second.locator("main").inner_text()
    first.wait_for_url("**/rollout?done=promote")
    for page in (first, second):
        page.context.close()
    with reading(served.engine) as connection:
        assert current_rollout(connection).champion == 2


def test_a_page_of_another_site_cannot_press_a_button(browser, served, tmp_path):
    """The other site is another port of this machine: to the browser as foreign as any."""
    with reading(served.engine) as connection:
        rollout = current_rollout(connection).rollout_id
    form = (
        f'<form method="post" action="{served.address}/rollout/promote">'
        f'<input name="rollout" value="{rollout}"><input name="reason" value="r">'
        '<input name="csrf" value="0"><button>go</button></form>'
    )

    async def evil(scope, receive, send):
        if scope["type"] != "http":
            return
        headers = [(b"content-type", b"text/html")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": form.encode()})

    with listening(evil) as other:
        context = browser.new_context(base_url=served.address)
        page = context.new_page()
        log_in(page, served.token)
        page.goto(other.replace("127.0.0.1", "localhost"))
        with page.expect_response("**/rollout/promote") as answer:
            page.get_by_role("button").click()
        assert answer.value.status in (401, 403)
        context.close()
    with reading(served.engine) as connection:
        assert current_rollout(connection).challenger == 2


def test_a_tip_that_is_script_is_shown_as_text(browser, served):
    with tab(browser, served.address, served.token) as page:
        dialogs = []
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        page.goto("/rollout")
        assert "<script>alert('tip')</script>" in page.locator("#tips-champion").inner_text()
        assert page.locator("main img, main script").count() == 0
        assert dialogs == []


def test_the_first_tab_leads_past_the_menu(browser, served):
    with tab(browser, served.address, served.token) as page:
        page.goto("/")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        page.keyboard.press("Enter")
        assert page.url.endswith("#main")


def test_a_table_is_downloaded_as_csv(browser, served):
    with tab(browser, served.address, served.token) as page:
        page.goto("/reactions")
        with page.expect_download() as download:
            page.locator('a[download="kinds.csv"]').click()
        text = Path(download.value.path()).read_text(encoding="utf-8")
    assert text.startswith("kind,written,shown,done")


def test_a_proposal_is_read_at_a_glance(browser, database, chat):
    with world(database, chat) as made:
        opened = fill(made, tips=3_000, lift=0.3, reviews=2)
        settings = CanaryConfig(**{**made.config.canary.model_dump(), "decides": "propose"})
        review(made, opened, NOW, settings=settings)
        token = made.key("operator")
        with listening(made.app) as address, tab(browser, address, token) as page:
            page.goto("/")
            assert "Yes: the new model is better." in page.locator(".big").inner_text()
            keep(page, "pages-overview")
            page.get_by_role("link", name="To the rollout").click()
            assert "promote" in page.locator(".notice").inner_text()
            keep(page, "pages-rollout")


def test_axe_finds_what_keeps_somebody_out(browser):
    page = browser.new_page()
    page.set_content("<html><title>t</title><main><h1>h</h1><input></main></html>")
    assert "label" in [rule for rule, _ in findings(page)]
    page.close()


def test_the_rules_of_axe_are_the_ones_that_are_named():
    assert json.loads((AXE.parent / "axe.json").read_text(encoding="utf-8"))["license"] == "MPL-2.0"
