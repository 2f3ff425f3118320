"""One tip: assembled, routed, generated, guarded, recorded, and what people did with it.

What is live comes from `live_models.py`, the text from a model server; HTTP is the web's business.
"""

import logging
import re
import secrets
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Literal

import sqlalchemy as sa

from reactune.canary.routing import propensity, route, unit_key
from reactune.config import ServeConfig
from reactune.context import Part
from reactune.errors import CanaryError, DataError, ReleaseError
from reactune.live_models import Lineup, LiveModels
from reactune.privacy import Key, refill, user_key
from reactune.prompt import Chat, assemble, render
from reactune.records import (
    REACTIONS,
    Arm,
    Completion,
    ModelVersion,
    Prompt,
    Reaction,
    Runtime,
    Sampling,
    canonical_json,
)
from reactune.run_root import HERE, RunRoot
from reactune.schema import UtcTime
from reactune.store import tip_scores, writing

Fallback = Literal["error", "timeout", "blocked"]

CHALLENGER_THREADS = 32
CHAMPION_DRAWS = 3  # the champion has nobody behind it: an unfit text is drawn again
MAX_DWELL_MS = 2**31 - 1  # what the column holds: 24 days
UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # NUL and half surrogates: no database takes them

log = logging.getLogger(__name__)
_utc_now = partial(datetime.now, UTC)


class UnshowableTipError(CanaryError):
    """The champion wrote nothing that may be shown, however often it was asked."""


class UnknownTipError(DataError):
    """No tip of this id was ever given out."""


@dataclass(frozen=True)
class Tip:
    """What the app shows: the text, and the id under which the reaction comes back."""

    tip_id: str
    content: str


@dataclass(frozen=True)
class Service:
    """What answering takes, held open: made by `open_service`, ended by `close_service`.

    `draw(n)` gives n random bits: tip ids and sampling seeds come from it.
    """

    engine: sa.Engine
    chat: Chat
    runtime: Runtime
    key: Key
    settings: ServeConfig
    clock: Callable[[], datetime]
    draw: Callable[[int], int]
    live: LiveModels
    threads: ThreadPoolExecutor


@dataclass(frozen=True)
class _Answer:
    """A text that may be shown, as the model wrote it and as the user gets it."""

    model: ModelVersion
    text: str
    shown: str
    sampling_json: str
    fallback: Fallback | None = None


def open_service(
    engine: sa.Engine,
    *,
    chat: Chat,
    runtime: Runtime,
    key: Key,
    settings: ServeConfig,
    root: RunRoot = HERE,
    clock: Callable[[], datetime] = _utc_now,
    draw: Callable[[int], int] = secrets.randbits,
) -> Service:
    """A service over an open store and a connected model server; nothing is published yet."""
    grace = 60.0 + 2 * settings.timeout_seconds
    live = LiveModels(engine, runtime, root=root, grace_seconds=grace)
    threads = ThreadPoolExecutor(CHALLENGER_THREADS, thread_name_prefix="challenger")
    return Service(engine, chat, runtime, key, settings, clock, draw, live, threads)


def close_service(service: Service) -> None:
    """Stop the model server, where it is ours, and take no more work."""
    service.threads.shutdown(wait=False, cancel_futures=True)
    service.runtime.close()


def request_tip(
    service: Service,
    *,
    user_id: str,
    kind: str,
    context: Mapping[str, Part],
    names: Iterable[str] = (),
) -> Tip:
    """Give a user a tip; when this returns, the exposure is on disk.

    If the challenger fails, takes longer than `timeout_seconds` or writes what cannot be shown,
    the champion answers: the row keeps the assigned arm and its propensity, names the version that
    wrote the tip, and says why in `fallback`. The row holds placeholders where the user reads
    personal data. A change of the rollout takes effect within `LiveModels.max_age_seconds`.

    Raises:
        DataError: the user id or kind is empty, the context holds what has no place in one, or
            the database does not answer.
        CanaryError: nothing is live, or the champion wrote nothing that can be shown.
        ReleaseError: the champion's model server does not answer.
    """
    if not user_id or not kind.isprintable() or not kind:
        raise DataError("a tip needs a user id and a printable kind; give both")
    started, now = time.perf_counter(), service.clock()
    tip_id = uuid.UUID(int=service.draw(128), version=4).hex
    person = user_key(service.key, user_id)

    live = service.live.current()
    prompt = assemble(service.chat, kind, context, names=names)
    unit = unit_key(live.rollout.unit, tip_id=tip_id, user_key=person, at=now)
    arm = route(unit, salt=live.rollout.salt, share=live.share)
    answer = _answer(service, live, arm, prompt)

    exposure = {
        "tip_id": tip_id,
        "user_key": person,
        "key_id": service.key.key_id,
        "kind": kind,
        "source": "llm",
        "context_json": prompt.context_json,
        "tip_content": answer.text,
        "model_version": answer.model.version,
        "arm": arm,
        "rollout_id": live.rollout_id,
        "unit_key": unit,
        "propensity": propensity(arm, live.share),
        "sampling_json": answer.sampling_json,
        "fallback": answer.fallback,
        "created_at": now,
        "answer_ms": round(1000 * (time.perf_counter() - started)),
    }
    with writing(service.engine) as connection:
        connection.execute(tip_scores.insert(), exposure)
    return Tip(tip_id, answer.shown)


def tip_shown(service: Service, tip_id: str) -> None:
    """The user sees the tip now; of several calls the first stands.

    Only shown tips are compared, and a reaction does not imply this call: an app that forgets it
    would otherwise be judged on those who reacted alone.

    Raises:
        UnknownTipError: no such tip was given out.
        DataError: the database does not answer.
    """
    shown_at = sa.func.coalesce(tip_scores.c.shown_at, _time(service))
    _update(service, tip_id, {"shown_at": shown_at})


def react(service: Service, tip_id: str, reaction: Reaction, dwell_ms: int) -> None:
    """Record what the user did, after how many milliseconds of looking at the tip.

    A later reaction rewrites the former; the same one again changes nothing.

    Raises:
        UnknownTipError: no such tip was given out.
        DataError: an unknown reaction, a negative dwell time, or the database does not answer.
    """
    if reaction not in REACTIONS:
        raise DataError(f"unknown reaction; give one of {', '.join(REACTIONS)}")
    if type(dwell_ms) is not int or not 0 <= dwell_ms <= MAX_DWELL_MS:
        raise DataError(f"dwell_ms = {dwell_ms!r}: give milliseconds, 0 to {MAX_DWELL_MS}")
    row = tip_scores.c
    is_repeated = sa.and_(row.reaction == reaction, row.dwell_ms == dwell_ms)
    reacted_at = sa.case((is_repeated, row.reacted_at), else_=_time(service))
    _update(service, tip_id, {"reaction": reaction, "dwell_ms": dwell_ms, "reacted_at": reacted_at})


def check_ready(service: Service) -> None:
    """Return if the database says what is live and the champion of it writes a token.

    Raises:
        CanaryError, DataError, ReleaseError: nothing is live, or one of the two does not answer.
    """
    champion = service.live.current().champion
    prompt = render(service.chat, "Ready?")
    service.runtime.generate(champion, prompt, Sampling(0.0, 1.0, max_tokens=1, seed=0))


def _answer(service: Service, live: Lineup, arm: Arm, prompt: Prompt) -> _Answer:
    if arm == "champion" or live.challenger is None:
        return _champion_answer(service, live.champion, prompt)
    answer = _challenger_answer(service, live.challenger, prompt)
    if isinstance(answer, _Answer):
        return answer
    log.warning("version %d: %s; the champion answers", live.challenger.version, answer)
    return replace(_champion_answer(service, live.champion, prompt), fallback=answer)


def _challenger_answer(service: Service, model: ModelVersion, prompt: Prompt) -> _Answer | Fallback:
    sampling, limit = _sampling(service), service.settings.timeout_seconds
    started = time.monotonic()
    writing_it = service.threads.submit(service.runtime.generate, model, prompt.text, sampling)
    try:
        error = writing_it.exception(timeout=limit)
    except TimeoutError:
        writing_it.cancel()
        return "timeout"
    if error is not None and time.monotonic() - started >= limit:
        return "timeout"  # the server's own limit ran out in the same moment
    if error is not None:
        # The message may quote the prompt, so only its type is told.
        log.warning("version %d does not answer: %s", model.version, type(error).__name__)
        service.live.doubt(model)
        return "error"
    return _guard(model, prompt, writing_it.result(), sampling) or "blocked"


def _champion_answer(service: Service, model: ModelVersion, prompt: Prompt) -> _Answer:
    for _ in range(CHAMPION_DRAWS):
        sampling = _sampling(service)
        try:
            completion = service.runtime.generate(model, prompt.text, sampling)
        except ReleaseError as error:
            service.live.doubt(model)
            # The server's own message may quote the prompt.
            raise ReleaseError(
                f"version {model.version}, the champion, does not answer; see to the model server"
            ) from error
        answer = _guard(model, prompt, completion, sampling)
        if answer is not None:
            return answer
    raise UnshowableTipError(
        f"version {model.version} wrote {CHAMPION_DRAWS} tips that cannot be shown; ask again"
    )


def _guard(
    model: ModelVersion, prompt: Prompt, completion: Completion, sampling: Sampling
) -> _Answer | None:
    """The answer with its placeholders filled in again; None if it must not be shown."""
    text = completion.text.strip()
    shown = refill(text, prompt.placeholders)
    if not shown or UNSTORABLE.search(text):
        return None
    settings = asdict(sampling)
    if completion.logprob is not None:
        settings["logprob"] = completion.logprob
    return _Answer(model, text=text, shown=shown, sampling_json=canonical_json(settings))


def _sampling(service: Service) -> Sampling:
    of = service.settings
    return Sampling(of.temperature, of.top_p, of.max_tokens, seed=service.draw(31))


def _time(service: Service) -> sa.BindParameter[datetime]:
    return sa.bindparam("now", service.clock(), UtcTime)


def _update(service: Service, tip_id: str, change: Mapping[str, object]) -> None:
    changed = 0
    if tip_id.isprintable():
        update = tip_scores.update().where(tip_scores.c.tip_id == tip_id).values(change)
        with writing(service.engine) as connection:
            changed = connection.execute(update).rowcount
    if changed != 1:
        raise UnknownTipError("no tip of this id was given out; take the id of the answer")
