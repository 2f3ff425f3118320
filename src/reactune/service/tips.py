"""One tip: assembled, routed, written, guarded, recorded, and what people did with it.

What is live comes from `live_models.py`, the text from `answering.py`; HTTP is the web's business.
"""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import sqlalchemy as sa
from anyio import move_on_after, to_thread

from reactune.canary.routing import propensity, route, unit_key
from reactune.errors import AwayError, DataError
from reactune.model.context import Part
from reactune.model.prompt import assemble, render
from reactune.pii.spans import refill
from reactune.privacy.consent import HashedIds
from reactune.privacy.hashing import hashed_ids
from reactune.records import REACTIONS, Prompt, Reaction, Sampling
from reactune.service.answers import (
    Answer,
    answer_silently,
    answer_tip,
    fall_back,
)
from reactune.service.events import Given, Reacted, Shown, Written
from reactune.service.rollout_watcher import Lineup, read_live
from reactune.service.state import Service
from reactune.store.database import reading
from reactune.store.schema import tip_scores

SILENT_AT_ONCE = 2  # people's tips come first
MAX_DWELL_MS = 2**31 - 1  # what the column holds: 24 days
TIP_ID = re.compile(r"[0-9a-zA-Z_-]{16,64}")

log = logging.getLogger(__name__)


class UnknownTipError(DataError):
    """Nothing that could be the id of a tip, or of one that is no more."""


@dataclass(frozen=True)
class Asked:
    """What an app asks for. With a `tip_id` of its own, asking again gives the same tip."""

    user_id: str
    kind: str
    context: Mapping[str, Part] = field(default_factory=dict, repr=False)
    names: tuple[str, ...] = field(default=(), repr=False)
    tip_id: str = ""


@dataclass(frozen=True)
class Tip:
    """What the app shows: the text, and the id under which the reaction comes back.

    Where it was not `recorded`, because the database is away, it is evidence for nothing.
    """

    tip_id: str
    content: str
    prompt_tokens: int = 0
    tokens: int = 0
    recorded: bool = True


async def give_tip(service: Service, asked: Asked) -> Tip:
    """Give a user a tip; when this returns, the exposure is on disk, or `recorded` says no.

    If the challenger fails, takes longer than `timeout_seconds`, writes what cannot be shown or is
    withdrawn meanwhile, the champion answers, and if that fails, a stored tip: the row keeps the
    assigned arm and its propensity, names the version that wrote the tip, and says why in
    `fallback` and `guard`. The row holds placeholders where the user reads personal data. A
    change of the rollout takes effect within `LiveModels.max_age_seconds`. While the database does
    not answer within `record_seconds`, people still get tips, which count for nobody.

    Raises:
        DataError: user id, kind, context or tip id do not fit, the user was erased in this
            moment, or too much waits to be written.
        CanaryError: nothing is live, or nobody has a tip that can be shown.
        ReleaseError: the champion's model server does not answer, and no tip is stored.
    """
    started, now = time.perf_counter(), service.clock()
    names, tip_id = _identify(service, asked)
    person = names[0].user_key
    prompt = assemble(service.chat, asked.kind, asked.context, names=asked.names)
    if asked.tip_id and (before := await _given_before(service, tip_id, person, prompt)):
        return before

    live = await lineup_now(service)
    unit = unit_key(live.rollout.unit, tip_id=tip_id, user_key=person, at=now)
    arm = route(unit, salt=live.rollout.salt, share=live.share)
    answer = await answer_tip(service, live, arm, prompt, person=person)
    if _is_withdrawn(answer, latest := service.live.latest or live):
        answer = await fall_back(service, latest, prompt, person=person, because="stopped")

    exposure = {
        "tip_id": tip_id,
        "user_key": person,
        "key_id": names[0].key_id,
        "kind": asked.kind,
        "context_json": prompt.context_json,
        **_told_of(answer),
        "arm": arm,
        "rollout_id": live.rollout_id,
        "unit_key": unit,
        "propensity": propensity(arm, live.share),
        "created_at": now,
        "answer_ms": round(1000 * (time.perf_counter() - started)),
    }
    try:
        recorded = await _is_recorded(service, Given(exposure, names, awaited=bool(asked.tip_id)))
    except sa.exc.IntegrityError:
        # The same request came twice at once, and the other was faster.
        if asked.tip_id and (before := await _given_before(service, tip_id, person, prompt)):
            return before
        raise
    _answer_beside(service, live, prompt)
    return Tip(tip_id, answer.shown, len(prompt.token_ids), answer.tokens, recorded)


def request_tip(
    service: Service,
    *,
    user_id: str,
    kind: str,
    context: Mapping[str, Part],
    names: Iterable[str] = (),
    tip_id: str = "",
) -> Tip:
    """`give_tip`, for callers without an event loop."""
    return asyncio.run(_give_one_tip(service, Asked(user_id, kind, context, tuple(names), tip_id)))


async def _give_one_tip(service: Service, asked: Asked) -> Tip:
    try:
        return await give_tip(service, asked)
    finally:
        await service.runtime.end_writing()  # the event loop ends here, and its connections


async def note_shown(service: Service, tip_id: str) -> Written:
    """The user sees the tip now; of several calls the first stands.

    Only shown tips are compared, and a reaction does not imply this call: an app that forgets it
    would otherwise be judged on those who reacted alone.

    Raises:
        UnknownTipError: no tip could have this id, or its tip was erased.
        DataError: the database does not answer.
    """
    return _known(await service.recorder.on_disk(Shown(_possible(tip_id), service.clock())))


def tip_shown(service: Service, tip_id: str) -> Written:
    """`note_shown`, for callers without an event loop."""
    return _known(service.recorder.record(Shown(_possible(tip_id), service.clock())).result())


async def note_reaction(
    service: Service, tip_id: str, reaction: Reaction, dwell_ms: int
) -> Written:
    """Record what the user did, after how many milliseconds of looking at the tip.

    A later reaction rewrites the former; the same one again changes nothing. Where the tip is not
    known yet, the reaction is `kept` for it.

    Raises:
        UnknownTipError: no tip could have this id, or its tip was erased.
        DataError: an unknown reaction, a negative dwell time, or the database does not answer.
    """
    return _known(await service.recorder.on_disk(_reacted(service, tip_id, reaction, dwell_ms)))


def react(service: Service, tip_id: str, reaction: Reaction, dwell_ms: int) -> Written:
    """`note_reaction`, for callers without an event loop."""
    return _known(service.recorder.record(_reacted(service, tip_id, reaction, dwell_ms)).result())


def check_ready(service: Service) -> None:
    """Return if the database says what is live and the champion of it writes a token.

    Raises:
        CanaryError, DataError, ReleaseError: nothing is live, or one of the two does not answer.
    """
    read_live(service.engine)
    champion = service.live.current().champion
    prompt = render(service.chat, "Ready?")
    service.runtime.generate(champion, prompt, Sampling(0.0, 1.0, max_tokens=1, seed=0))


def _identify(service: Service, asked: Asked) -> tuple[HashedIds, str]:
    if not asked.user_id or not asked.kind.isprintable() or not asked.kind:
        raise DataError("a tip needs a user id and a printable kind; give both")
    if asked.tip_id and not TIP_ID.fullmatch(asked.tip_id):
        raise DataError("tip_id: give 16 to 64 letters, digits, - or _, drawn at random")
    names = hashed_ids(service.hashing_keys, asked.user_id)
    return names, asked.tip_id or uuid.UUID(int=service.draw(128), version=4).hex


async def lineup_now(service: Service) -> Lineup:
    """What is live, without holding up the event loop.

    Raises:
        CanaryError, DataError: as `LiveModels.current`.
    """
    fresh = service.live.fresh
    return fresh if fresh is not None else await to_thread.run_sync(service.live.current)


def _is_withdrawn(answer: Answer, latest: Lineup) -> bool:
    """Whether the model that wrote the answer was taken out while it wrote."""
    return answer.model is not None and answer.model not in (latest.champion, latest.challenger)


def _told_of(answer: Answer) -> dict[str, Any]:
    return {
        "source": answer.source,
        "tip_content": answer.text,
        "model_version": answer.model.version if answer.model else None,
        "sampling_json": answer.sampling_json,
        "fallback": answer.fallback,
        "guard": answer.guard,
    }


async def _is_recorded(service: Service, given: Given) -> bool:
    """Whether the exposure is on disk; not while the database is away."""
    within = service.settings.record_seconds
    try:
        written = await service.recorder.on_disk(given, within=within)
    except sa.exc.IntegrityError:
        raise
    except (AwayError, sa.exc.SQLAlchemyError) as error:
        log.error("a tip is shown without a record: %s", type(error.__cause__ or error).__name__)
        return False
    if written == "erased":
        raise DataError("the user was erased while their tip was written; ask again")
    for listen in service.listeners:
        listen(given.row)
    return True


def _answer_beside(service: Service, live: Lineup, prompt: Prompt) -> None:
    """In the shadow phase the challenger answers too, after the tip; a few of them at once."""
    if live.rollout.phase == "shadow" and live.challenger and len(service.silent) < SILENT_AT_ONCE:
        task = asyncio.create_task(_answer_unseen(service, live, prompt))
        service.silent.add(task)
        task.add_done_callback(service.silent.discard)


async def _answer_unseen(service: Service, live: Lineup, prompt: Prompt) -> None:
    try:
        await service.recorder.on_disk(await answer_silently(service, live, prompt))
    except (DataError, sa.exc.SQLAlchemyError) as error:
        # The rollout may have ended meanwhile, or the database is away: nobody waits for this.
        log.warning("a silent answer is not counted: %s", type(error).__name__)


async def _given_before(service: Service, tip_id: str, person: str, prompt: Prompt) -> Tip | None:
    found, within = None, service.settings.record_seconds
    with move_on_after(within), suppress(AwayError, sa.exc.SQLAlchemyError):
        reading_it = partial(_read_tip, service, tip_id)
        found = await to_thread.run_sync(reading_it, abandon_on_cancel=True)
    if found is None:
        return None
    owner, text = found
    shown = refill(text, prompt.placeholders)
    if owner != person or shown is None:
        raise DataError("this tip_id was given for another request; draw a new one")
    return Tip(tip_id, shown, len(prompt.token_ids))


def _read_tip(service: Service, tip_id: str) -> tuple[str, str] | None:
    here = tip_scores.c.tip_id == tip_id
    with reading(service.engine) as connection:
        row = connection.execute(
            sa.select(tip_scores.c.user_key, tip_scores.c.tip_content).where(here)
        ).one_or_none()
    return None if row is None else (row[0], row[1])


def _reacted(service: Service, tip_id: str, reaction: Reaction, dwell_ms: int) -> Reacted:
    if reaction not in REACTIONS:
        raise DataError(f"unknown reaction; give one of {', '.join(REACTIONS)}")
    if type(dwell_ms) is not int or not 0 <= dwell_ms <= MAX_DWELL_MS:
        raise DataError(f"dwell_ms = {dwell_ms!r}: give milliseconds, 0 to {MAX_DWELL_MS}")
    return Reacted(_possible(tip_id), reaction, dwell_ms, service.clock())


def _known(written: Written) -> Written:
    if written == "erased":
        raise UnknownTipError("the tip was erased with all that its user did")
    return written


def _possible(tip_id: str) -> str:
    if not tip_id or len(tip_id) > 200 or not tip_id.isprintable():
        raise UnknownTipError("no tip has such an id; take the id of the answer")
    return tip_id
