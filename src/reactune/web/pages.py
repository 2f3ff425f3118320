"""The pages of the service: who may see and do what, and one function a page.

A browser logs in with a key and gets a session cookie. Every form carries the session's own token
and comes from the same site; every action leaves a row. Answers forbid scripts, frames and caches.
"""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit

import sqlalchemy as sa
from fastapi import Depends, FastAPI
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from reactune.canary import rollout as rollouts
from reactune.config.settings import Config
from reactune.errors import DataError
from reactune.pages import facts, views
from reactune.pages.facts import Trial
from reactune.pages.overview import overview as overview_of
from reactune.pages.pictures import get_ready
from reactune.pages.render import html, style_sheet
from reactune.pages.tables import Mark, Section, Table, find_table, moment, plural
from reactune.pages.verdicts import words
from reactune.privacy.consent import status_of_ids, with_rows
from reactune.privacy.hashing import hashed_ids, rare_hashed_ids
from reactune.privacy.user_ids import id_in_url
from reactune.records import Reason
from reactune.review import holdback_after
from reactune.service.api_keys import Scope, all_keys, recognise
from reactune.service.sessions import (
    LASTS,
    close_session,
    form_token,
    is_form_token,
    key_of_session,
    open_session,
    record_action,
)
from reactune.service.state import Service
from reactune.store import queries
from reactune.store.database import reading
from reactune.store.labels import label_rule
from reactune.store.schema import tip_scores
from reactune.store.summaries import Latest, days_since, latest_days
from reactune.web.access import LOOPBACK, PAGE_HEADERS, Bucket, KeyRegistry

PAGES = {
    "Overview": "/", "Reactions": "/reactions", "Runs": "/runs", "Rollout": "/rollout",
    "Models": "/models", "People": "/people", "Settings": "/settings", "Keys": "/keys",
}  # fmt: skip
SEES: frozenset[Scope] = frozenset({"read", "operator"})
DAYS_SHOWN = 28
KEPT_SECONDS = 15.0  # how old the counts of the latest days may be
MOST_REASON_CHARS = 500
MOST_FIELDS = 10
LOGINS_PER_SECOND, ADDRESSES_KNOWN = 2.0, 1_000
PASSED_ON = ("forwarded", "x-forwarded-for", "x-forwarded-host", "via")  # by a proxy
COOKIE, SECURE_COOKIE = "reactune_session", "__Host-reactune_session"
Action = Literal["promote", "roll-back", "stop"]
ACTIONS: Mapping[Action, tuple[str, str]] = {
    "promote": ("Promote", "good"),
    "roll-back": ("Roll back", "bad"),
    "stop": ("Stop now", "bad"),
}
DONE = {
    "promote": "Promoted: the new model answers everybody. Registry and model server follow with "
    "the next review.",
    "roll-back": "Rolled back: the old model answers everybody. Registry and model server follow "
    "with the next review.",
    "stop": "Stopped: the old model answers everybody, in every worker in under a second.",
}
Form = dict[str, str]


@dataclass(frozen=True)
class Viewer:
    """Who reads a page: a key, or anybody on this machine while there is none (`is_open`)."""

    key_id: str = ""
    name: str = ""
    scopes: frozenset[Scope] = frozenset()
    token: str = field(default="", repr=False)
    is_open: bool = False

    @property
    def csrf(self) -> str:
        """What the forms of this session carry."""
        return form_token(self.token) if self.token else ""

    @property
    def may_act(self) -> bool:
        """Whether buttons work."""
        return "operator" in self.scopes

    @property
    def sees_texts(self) -> bool:
        """Whether texts of tips are shown."""
        return "content" in self.scopes


@dataclass(frozen=True)
class View:
    """What a page shows: a template, its title and sections, and what else the template names."""

    template: str
    title: str
    sections: tuple[Section, ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Pages:
    """The pages over an open service. `logins` bounds the tries to log in of each address."""

    service: Service
    config: Config
    keys: KeyRegistry
    clock: Callable[[], float] = time.monotonic
    logins: dict[str, Bucket] = field(default_factory=dict)
    counted: tuple[float, Latest] | None = None

    @property
    def is_open(self) -> bool:
        """Whether anybody on this machine may read: there is no key, and nobody else gets here."""
        settings = self.service.settings
        return not self.keys.keys and settings.host in LOOPBACK and settings.auth != "required"

    def viewer(self, request: Request) -> Viewer | None:
        """Who asks, or None where a login is needed."""
        if self.is_open:
            return Viewer(is_open=True) if _is_local(request) else None
        token = _token(request)
        key_id = key_of_session(self.service.engine, token, now=self.service.clock())
        key = self.keys.keys.get(key_id or "")
        if key is None or key.revoked_at is not None or not key.scopes & SEES:
            return None
        request.scope["reactune_key"] = key.key_id
        return Viewer(key.key_id, key.name, key.scopes, token)

    def show(
        self, request: Request, build: Callable[[sa.Connection, Viewer], View | None]
    ) -> Response:
        """A page, or one table of it as CSV, for whoever may see it."""
        viewer = self.viewer(request)
        if viewer is None:
            return RedirectResponse("/login", 303, PAGE_HEADERS)
        with reading(self.service.engine) as connection:
            view = build(connection, viewer)
        if view is None:
            return self.problem(404, "There is no such page.", viewer)
        if name := request.query_params.get("csv", ""):
            table = find_table(view.sections, name)
            return _csv(table) if table else self.problem(404, "There is no such table.", viewer)
        return self.page(view, viewer, here=request.scope["path"])

    def page(
        self, view: View, viewer: Viewer | None, *, here: str = "", status: int = 200
    ) -> Response:
        """A view as HTML."""
        context = {"done": "", "now": moment(self.service.clock()), "lead": "", **view.more}
        text = html(
            view.template,
            title=view.title,
            sections=view.sections,
            viewer=viewer,
            pages=PAGES,
            here=here,
            **context,
        )
        return HTMLResponse(text, status, PAGE_HEADERS)

    def problem(self, status: int, reason: str, viewer: Viewer | None) -> Response:
        """A page that says what is wrong."""
        titles = {401: "Log in", 403: "Not allowed", 404: "Not found", 409: "Nothing was done"}
        view = View("problem", titles.get(status, "Refused"), more={"reason": reason})
        return self.page(view, viewer, status=status)

    def refuse_form(self, request: Request, form: Form) -> Response | None:
        """Why a form is not taken: no session, or another site sent it. None: it is taken."""
        viewer = self.viewer(request)
        if viewer is None or not viewer.token:
            return self.problem(401, "Log in with a key first: /login.", viewer)
        if not _is_same_site(request) or not is_form_token(form.get("csrf", ""), viewer.token):
            reason = "The form does not come from a page of this session; open it again."
            return self.problem(403, reason, viewer)
        return None

    def latest(self, connection: sa.Connection) -> Latest:
        """The counts of the latest days, no older than `KEPT_SECONDS`."""
        now = self.clock()
        if self.counted is None or now - self.counted[0] > KEPT_SECONDS:
            self.counted = (now, latest_days(connection, label_rule(self.config.labels)))
        return self.counted[1]

    def login_wait(self, request: Request) -> float:
        """Seconds that this address has to wait for its next try to log in; 0: it may try now."""
        address = request.client.host if request.client else ""
        if len(self.logins) > ADDRESSES_KNOWN:
            self.logins.clear()
        now = self.clock()
        bucket = self.logins.setdefault(address, Bucket(math.inf, now))
        return bucket.take(now, rate=LOGINS_PER_SECOND)

    def record(self, viewer: Viewer, action: str, **more: str) -> None:
        """Record what somebody did."""
        now = self.service.clock()
        record_action(self.service.engine, viewer.key_id, action, now=now, **more)


async def read_form(request: Request) -> Form:
    """The fields of a form; none of a body that is no form."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        return {}
    body = (await request.body()).decode("latin-1")
    try:
        return dict(parse_qsl(body, keep_blank_values=True, max_num_fields=MOST_FIELDS))
    except ValueError:
        return {}


Fields = Annotated[Form, Depends(read_form)]


def add_pages(app: FastAPI, pages: Pages) -> None:
    """Add every page to the service's app."""
    _add_login(app, pages)
    _add_overview(app, pages)
    _add_runs(app, pages)
    _add_rollout(app, pages)
    _add_people(app, pages)
    _add_settings(app, pages)


def _add_login(app: FastAPI, pages: Pages) -> None:
    engine = pages.service.engine

    @app.get("/assets/pages.css", include_in_schema=False)
    def style() -> Response:
        headers = {**PAGE_HEADERS, "cache-control": "max-age=300"}
        return Response(style_sheet(), media_type="text/css", headers=headers)

    @app.get("/login", include_in_schema=False)
    def login_page(request: Request) -> Response:
        if pages.is_open:
            return RedirectResponse("/", 303, PAGE_HEADERS)
        answer = _login(pages, "", 200)
        answer.background = BackgroundTask(get_ready)  # while somebody pastes a key
        return answer

    @app.post("/login", include_in_schema=False)
    def login(request: Request, form: Fields) -> Response:
        if not _is_same_site(request):
            return _login(pages, "The form comes from another site; try it here.", 403)
        if seconds := pages.login_wait(request):
            answer = _login(pages, "Too many tries; wait a second.", 429)
            answer.headers["retry-after"] = str(math.ceil(seconds))
            return answer
        pages.keys.refresh()
        key = recognise(form.get("key", "").strip(), pages.keys.keys)
        if key is None:
            return _login(pages, "This is no valid key.", 401)
        if not key.scopes & SEES:
            return _login(pages, "The key needs the scope read or operator.", 403)
        token = open_session(engine, key.key_id, now=pages.service.clock())
        pages.record(Viewer(key.key_id), "log in")
        return _with_cookie(RedirectResponse("/", 303, PAGE_HEADERS), request, token)

    @app.post("/logout", include_in_schema=False)
    def logout(request: Request, form: Fields) -> Response:
        if refused := pages.refuse_form(request, form):
            return refused
        viewer = pages.viewer(request)
        if viewer:
            close_session(engine, viewer.token)
            pages.record(viewer, "log out")
        return _with_cookie(RedirectResponse("/login", 303, PAGE_HEADERS), request, "")


def _add_overview(app: FastAPI, pages: Pages) -> None:
    config = pages.config

    @app.get("/", include_in_schema=False)
    def overview(request: Request) -> Response:
        def build(connection: sa.Connection, viewer: Viewer) -> View:
            now = pages.service.clock()
            found = overview_of(connection, config, pages.latest(connection), now=now)
            recent = Section("The last two weeks", pictures=(views.by_day(found.days),))
            return View("overview", "Overview", (recent,), {"overview": found})

        return pages.show(request, build)

    @app.get("/reactions", include_in_schema=False)
    def reactions(request: Request) -> Response:
        def build(connection: sa.Connection, viewer: Viewer) -> View:
            since = facts.days_ago(pages.service.clock(), DAYS_SHOWN - 1)
            days = days_since(connection, since, pages.latest(connection))
            names = _names(connection)
            lead = f"Tips written in the last {DAYS_SHOWN} days, and what users did with them."
            sections = tuple(views.reactions_page(days, config.labels, names))
            return View("page", "Reactions", sections, {"lead": lead})

        return pages.show(request, build)


def _add_runs(app: FastAPI, pages: Pages) -> None:
    @app.get("/runs", include_in_schema=False)
    def runs(request: Request) -> Response:
        def build(connection: sa.Connection, viewer: Viewer) -> View:
            table = views.runs_table(facts.runs(connection))
            lead = "Each run trains a new model from reactions, and may put it on trial."
            return View("page", "Runs", (Section("Runs", tables=(table,)),), {"lead": lead})

        return pages.show(request, build)

    @app.get("/runs/{run_id}", include_in_schema=False)
    def run(request: Request, run_id: str) -> Response:
        def build(connection: sa.Connection, viewer: Viewer) -> View | None:
            found = facts.run(connection, run_id)
            if found is None:
                return None
            register = found.stage("register")
            rollout_id = None
            if register and "version" in register.counts:
                rollout_id = facts.rollout_of_version(connection, int(register.counts["version"]))
            tips: tuple[Table, ...] | None = ()
            if rollout_id and viewer.sees_texts:
                tips = _texts(connection, rollout_id)
            elif rollout_id:
                tips = None
            more = {"run": found, "state": views.run_state(found), "tips": tips}
            return View("run", f"Run {run_id}", tuple(views.run_page(found)), more)

        return pages.show(request, build)

    @app.get("/models", include_in_schema=False)
    def models(request: Request) -> Response:
        def build(connection: sa.Connection, viewer: Viewer) -> View:
            sections = views.models_page(
                facts.versions(connection),
                facts.live_trial(connection, pages.config),
                queries.versions_to_replace(connection),
                {each.run_id: each for each in facts.runs(connection)},
                now=pages.service.clock(),
            )
            return View("page", "Models", tuple(sections))

        return pages.show(request, build)


def _add_rollout(app: FastAPI, pages: Pages) -> None:
    config = pages.config

    @app.get("/rollout", include_in_schema=False)
    def rollout(request: Request) -> Response:
        def build(connection: sa.Connection, viewer: Viewer) -> View:
            done = DONE.get(request.query_params.get("done", ""), "")
            return _rollout(pages, connection, viewer, done)

        return pages.show(request, build)

    @app.get("/rollout/{action}", include_in_schema=False)
    def confirm(request: Request, action: Action) -> Response:
        viewer = pages.viewer(request)
        if viewer is None:
            return RedirectResponse("/login", 303, PAGE_HEADERS)
        if not viewer.may_act:
            return pages.problem(403, "This needs a key with the scope `operator`.", viewer)
        with reading(pages.service.engine) as connection:
            live = facts.live_trial(connection, config)
        if live is None or live.rollout.challenger is None:
            return pages.problem(409, "No model is on trial.", viewer)
        return _confirm(pages, viewer, action, live)

    @app.post("/rollout/{action}", include_in_schema=False)
    def act(request: Request, action: Action, form: Fields) -> Response:
        if refused := pages.refuse_form(request, form):
            return refused
        viewer = pages.viewer(request)
        if viewer is None or not viewer.may_act:
            return pages.problem(403, "This needs a key with the scope `operator`.", viewer)
        return _act(pages, viewer, action, form)


def _add_people(app: FastAPI, pages: Pages) -> None:
    def build(connection: sa.Connection, viewer: Viewer, **more: Any) -> View:
        sections = views.people_page(
            facts.all_erasures(connection),
            facts.privacy(connection),
            queries.versions_to_replace(connection),
            _names(connection),
            pages.config,
            now=pages.service.clock(),
        )
        context = {"found": None, "problem": "", **more}
        return View("people", "People", tuple(sections), context)

    @app.get("/people", include_in_schema=False)
    def people(request: Request) -> Response:
        return pages.show(request, build)

    @app.post("/people", include_in_schema=False)
    def look_up(request: Request, form: Fields) -> Response:
        if refused := pages.refuse_form(request, form):
            return refused
        try:
            found, problem = _look_up(pages, form.get("user", "")), ""
        except DataError as error:
            found, problem = None, f"This names nobody: {error}."
        viewer = pages.viewer(request)
        assert viewer is not None  # as `refuse_form` found
        pages.record(viewer, "look up", outcome="found" if found else "no id")
        with reading(pages.service.engine) as connection:
            view = build(connection, viewer, found=found, problem=problem)
        return pages.page(view, viewer, here="/people", status=200 if found else 422)


def _add_settings(app: FastAPI, pages: Pages) -> None:
    @app.get("/settings", include_in_schema=False)
    def settings(request: Request) -> Response:
        def build(connection: sa.Connection, viewer: Viewer) -> View:
            lead = "What this service runs with: marked values are not the defaults."
            sections = tuple(views.settings_page(pages.config))
            return View("page", "Settings in force", sections, {"lead": lead})

        return pages.show(request, build)

    @app.get("/keys", include_in_schema=False)
    def keys(request: Request) -> Response:
        def build(connection: sa.Connection, viewer: Viewer) -> View:
            found = all_keys(pages.service.engine)
            sections = tuple(views.keys_page(found, facts.actions(connection)))
            return View("page", "Keys", sections)

        return pages.show(request, build)


def _rollout(pages: Pages, connection: sa.Connection, viewer: Viewer, done: str) -> View:
    config, now = pages.config, pages.service.clock()
    live, before = facts.live_trial(connection, config), facts.last_trial(connection)
    progress = facts.progress(connection, config, pages.latest(connection), now=now)
    names = _names(connection)
    said = words(live, before, progress, settings=config.canary, now=now)
    on_trial = live is not None and live.rollout.challenger is not None
    shown = live if on_trial else before or live
    sections = views.trial_sections(shown, config) if shown else []
    if shown is before and before is not None:
        sections = [_of_last_trial(each) for each in sections]
    tips = None
    if shown and viewer.sees_texts:
        tips = _texts(connection, shown.rollout.rollout_id)
    buttons = [
        {"name": name, "tone": tone, "href": f"/rollout/{action}"}
        for action, (name, tone) in ACTIONS.items()
    ]
    more = {
        "words": said,
        "facts": views.trial_facts(live, names) if live else [],
        "buttons": buttons if on_trial else [],
        "tips": tips,
        "done": done,
    }
    return View("rollout", "Rollout", tuple(sections), more)


def _texts(connection: sa.Connection, rollout_id: str) -> tuple[Table, ...]:
    """What both models wrote last, and the candidates among which a reward chose."""
    tips = views.tips_tables(facts.latest_tips(connection, rollout_id))
    choices = facts.latest_choices(connection, rollout_id)
    return (*tips, views.candidates_table(choices)) if choices else tips


def _of_last_trial(section: Section) -> Section:
    return replace(section, title=f"Last trial: {section.title[:1].lower()}{section.title[1:]}")


def _confirm(
    pages: Pages, viewer: Viewer, action: Action, live: Trial, problem: str = ""
) -> Response:
    rollout = live.rollout
    name, tone = ACTIONS[action]
    question = {
        "promote": f"Version {rollout.challenger} answers everybody from now on, in place of "
        f"version {rollout.champion}.",
        "roll-back": f"Version {rollout.challenger} is withdrawn; version {rollout.champion} "
        "answers everybody.",
        "stop": f"Version {rollout.challenger} is withdrawn at once; version {rollout.champion} "
        "answers everybody.",
    }[action]
    more = {
        "question": question,
        "action": name,
        "tone": tone,
        "rollout_id": rollout.rollout_id,
        "needs_reason": action != "stop",
        "most_chars": MOST_REASON_CHARS,
        "problem": problem,
    }
    view = View("confirm", f"{name}?", more=more)
    here = f"/rollout/{action}"
    return pages.page(view, viewer, here=here, status=422 if problem else 200)


def _act(pages: Pages, viewer: Viewer, action: Action, form: Form) -> Response:
    """Promote or withdraw what the form names, unless it has ended meanwhile."""
    service, config = pages.service, pages.config
    reason = " ".join(form.get("reason", "").split())[:MOST_REASON_CHARS]
    with reading(service.engine) as connection:
        live = facts.live_trial(connection, config)
    asked = form.get("rollout", "")
    if live is None or live.rollout.challenger is None or live.rollout.rollout_id != asked:
        return _ended(pages, viewer, action, asked, reason)
    if action != "stop" and not reason:
        return _confirm(pages, viewer, action, live, "Give a reason; it is stored.")
    now = service.clock()
    text = reason or "stopped on the pages"
    why = Reason("hand", text, {"key": viewer.key_id}, now)
    if action == "promote":
        holdback = holdback_after(config.canary, live.rollout)
        after = rollouts.promote(service.engine, live.rollout, why, holdback=holdback)
        wanted = live.rollout.challenger
    else:
        after = rollouts.roll_back(service.engine, live.rollout, why)
        wanted = live.rollout.champion
    ours = (f"{asked}{queries.AFTER}", now, wanted)
    if (after.rollout_id, after.opened_at, after.champion) != ours:
        return _ended(pages, viewer, action, asked, reason)
    service.watcher.drop_withdrawn()
    pages.record(viewer, action.replace("-", " "), subject=asked, reason=text)
    return RedirectResponse(f"/rollout?done={action}", 303, PAGE_HEADERS)


def _ended(pages: Pages, viewer: Viewer, action: str, asked: str, reason: str) -> Response:
    outcome = "nothing: it had ended"
    subject = asked if asked.isprintable() and len(asked) < 100 else ""
    pages.record(viewer, action.replace("-", " "), subject=subject, reason=reason, outcome=outcome)
    text = "The rollout has ended meanwhile, perhaps by somebody else; see what is live now."
    return pages.problem(409, text, viewer)


def _look_up(pages: Pages, user_id: str) -> Table:
    """What is known of a user, by the app's id.

    Raises:
        IdError: there is no id in the text.
    """
    keys, user_id = pages.service.hashing_keys, id_in_url(user_id)
    ids = (*hashed_ids(keys, user_id), *rare_hashed_ids(keys, user_id))
    user_keys = [each.user_key for each in ids]
    with reading(pages.service.engine) as connection:
        status = status_of_ids(connection, ids)
        known = with_rows(connection, user_keys)
        of_user = tip_scores.c.user_key.in_(known)
        count = sa.select(sa.func.count()).where(of_user)
        tips = int(connection.execute(count).scalar_one()) if known else 0
        erased = [
            each
            for each in facts.all_erasures(connection, limit=None)
            if status.erased_at and each.asked_at == status.erased_at
        ]
    allowed = "yes" if status.training_allowed else "no"
    rows: list[tuple[str, str | Mark]] = [
        ("tips stored", plural(tips, "tip") if tips else "none"),
        ("may be learned from", f"{allowed}, decided {moment(status.decided_at)}"
         if status.decided_at else f"{allowed}, no decision recorded"),
        ("asked to be forgotten", moment(status.erased_at) if status.erased_at else "no"),
    ]  # fmt: skip
    rows += [
        (
            f"erasure {each.erasure_id}",
            Mark(f"done {moment(each.finished_at)}", "good")
            if each.finished_at
            else Mark(f"not done, left: {', '.join(each.left)}", "bad"),
        )
        for each in erased
    ]
    return Table("person", "This user", ("what", "found"), tuple(rows))


def _login(pages: Pages, problem: str, status: int) -> Response:
    return pages.page(View("login", "Log in", more={"problem": problem}), None, status=status)


def _names(connection: sa.Connection) -> dict[int, str]:
    return {each.version: each.name for each in queries.all_model_versions(connection)}


def _csv(table: Table) -> Response:
    headers = {
        **PAGE_HEADERS,
        "content-disposition": f'attachment; filename="{table.name}.csv"',
    }
    return Response(table.csv(), media_type="text/csv; charset=utf-8", headers=headers)


def _host(request: Request) -> str:
    with suppress(ValueError):
        return urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    return ""


def _is_local(request: Request) -> bool:
    """Whether somebody on this machine asks, by its own name and not through a proxy.

    The name of another site that leads to this machine is no way in.
    """
    is_passed_on = any(name in request.headers for name in PASSED_ON)
    client = request.client.host if request.client else ""
    return client in LOOPBACK and _host(request) in LOOPBACK and not is_passed_on


def _is_same_site(request: Request) -> bool:
    """Whether a form comes from a page of this address, as the browser says; old ones say less."""
    headers = request.headers
    if site := headers.get("sec-fetch-site"):
        return site in ("same-origin", "none")
    origin = headers.get("origin")
    if origin is None:
        return True
    # Compared as texts, for neither need be a URL: browsers write the scheme before their Host.
    _, is_url, host = origin.partition("://")
    return bool(is_url) and host == headers.get("host")


def _is_secure(request: Request) -> bool:
    return str(request.scope["scheme"]) == "https"


def _token(request: Request) -> str:
    return request.cookies.get(SECURE_COOKIE if _is_secure(request) else COOKIE, "")


def _with_cookie(answer: Response, request: Request, token: str) -> Response:
    """The answer with the session's cookie; an empty token removes it."""
    is_secure = _is_secure(request)
    answer.set_cookie(
        SECURE_COOKIE if is_secure else COOKIE,
        token,
        max_age=int(LASTS.total_seconds()) if token else 0,
        path="/",
        secure=is_secure,
        httponly=True,
        samesite="lax",
    )
    return answer
