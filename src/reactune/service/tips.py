"""One request for a tip, top to bottom: prompt, arm, answer, guard, exposure on disk.

A request gets a tip that passed the guard, or an error. `create_tip` reads as the table of
contents; after it come the steps in their order, then the app's reports on the tip.
"""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Literal

import sqlalchemy as sa
from anyio import move_on_after, to_thread

from reactune.canary.routing import propensity, route, unit_key
from reactune.errors import AwayError, CanaryError, DataError, ReleaseError
from reactune.model.context import Part
from reactune.model.prompt import assemble, chat_of_version, rendered_for, tip_token_ids
from reactune.pii.spans import refill
from reactune.privacy.consent import HashedIds
from reactune.privacy.hashing import hashed_ids
from reactune.privacy.user_ids import id_of_somebody
from reactune.records import (
    MAX_DWELL_MS,
    REACTIONS,
    Arm,
    Completion,
    Exposure,
    Fallback,
    ModelVersion,
    Prompt,
    Reaction,
    Sampling,
    canonical_json,
    is_tip_id,
)
from reactune.service.choice import RANDOM_BITS, Candidate, Choice, choose, first_passed
from reactune.service.events import ShadowAnswer, Status, TipCreated, TipReaction, TipShown
from reactune.service.guard import GuardVerdict, Judged, judge, judge_text
from reactune.service.state import LiveModels, Service
from reactune.store.database import reading
from reactune.store.labels import label_rule
from reactune.store.schema import tip_scores

CHAMPION_TRIES = 3  # after the champion there are only stored tips
MAX_LIKED_TIPS = 20
MAX_SHADOW_TASKS = 2  # users' own tips come first
KIND = re.compile(r"[\w][\w .:/-]{0,99}")
TIP_ID = re.compile(r"[0-9a-zA-Z_-]{16,64}")

log = logging.getLogger(__name__)


class UnknownTipError(DataError):
    """No tip can have this id, or the tip was erased."""


class UnshowableTipError(CanaryError):
    """No text of the champion passed the guard."""


@dataclass(frozen=True)
class TipRequest:
    """What an app asks for. The same `tip_id`, chosen by the app, always returns the same tip."""

    user_id: str
    kind: str
    context: Mapping[str, Part | None] = field(default_factory=dict, repr=False)
    names: tuple[str, ...] = field(default=(), repr=False)
    tip_id: str = ""


@dataclass(frozen=True)
class Tip:
    """What the app shows, and the id that its reports name.

    A tip that is not `recorded`, because the database is away, counts in no comparison. One that
    is `cut` holds the whole sentences of an answer that `max_tokens` ended.
    """

    tip_id: str
    content: str
    prompt_tokens: int = 0
    tokens: int = 0
    recorded: bool = True
    cut: bool = False


@dataclass(frozen=True)
class Answer:
    """A text that passed the guard: as it is stored, and as the user reads it.

    `refused` are the verdicts on texts before it. A stored tip has no model. `choice` holds the
    candidates among which a reward model chose. `tokens_read` are those that the server counted in
    the prompt.
    """

    model: ModelVersion | None
    text: str
    shown: str
    sampling_json: str | None
    source: Literal["llm", "stored"] = "llm"
    fallback: Fallback | None = None
    refused: tuple[GuardVerdict, ...] = ()
    tokens: int = 0
    cut: bool = False
    choice: Choice | None = None
    tokens_read: int | None = None


@dataclass(frozen=True)
class NoAnswer:
    """Why a model's answer cannot be shown; `refused` are the verdicts on its texts."""

    reason: Fallback
    refused: tuple[GuardVerdict, ...] = ()
    tokens_read: int | None = None


async def create_tip(service: Service, request: TipRequest) -> Tip:
    """A tip for a user; its exposure is on disk, or `recorded` is False.

    A version with a reward model writes `[serve] candidates` texts, and its reward chooses among
    those that pass the guard. If the challenger fails, exceeds `timeout_seconds`, writes what the
    guard refuses or is withdrawn meanwhile, the champion answers, and after it a stored tip. The
    exposure keeps the assigned arm and its propensity, and names the version that wrote the text;
    `fallback` and `guard` say why. It holds placeholders where the user reads personal data. While
    the database does not answer within `record_seconds`, users get tips that are not recorded.

    Raises:
        DataError: user id, kind, context or tip id do not fit, the user was erased meanwhile, or
            too many events wait to be written.
        CanaryError: nothing is live, or no text passed the guard.
        ReleaseError: the champion's model server does not answer, and no tip is stored.
    """
    started, now = time.perf_counter(), service.clock()
    _check(request)
    tip_id = request.tip_id or uuid.UUID(int=service.draw(128), version=4).hex
    user = hashed_ids(service.hashing_keys, id_of_somebody(request.user_id))
    user_key = user[0].user_key
    prompt = assemble(service.chat, request.kind, request.context, names=request.names)
    if request.tip_id and (tip := await _earlier_tip(service, tip_id, user, prompt)):
        return tip

    live = await live_models(service)
    unit = unit_key(live.rollout.unit, tip_id=tip_id, user_key=user_key, at=now)
    arm = route(unit, salt=live.rollout.salt, share=live.share)
    answer = await _answer(service, live, arm, prompt, user_key=user_key)

    exposure = Exposure(
        tip_id=tip_id,
        user_key=user_key,
        key_id=user[0].key_id,
        kind=request.kind,
        context_json=prompt.context_json,
        source=answer.source,
        tip_content=answer.text,
        model_version=answer.model.version if answer.model else None,
        sampling_json=answer.sampling_json,
        fallback=answer.fallback,
        guard=",".join((*answer.refused, "passed")),
        arm=arm,
        rollout_id=live.rollout_id,
        unit_key=unit,
        propensity=propensity(arm, live.share),
        created_at=now,
        answer_ms=round(1000 * (time.perf_counter() - started)),
        cut=answer.cut,
        choice_json=canonical_json(asdict(answer.choice)) if answer.choice else None,
        choice_chance=answer.choice.chance if answer.choice else None,
    )
    try:
        recorded = await _record(service, TipCreated(exposure, user, bool(request.tip_id)))
    except sa.exc.IntegrityError:
        # The same request arrived twice at once, and the other one was recorded first.
        if request.tip_id and (tip := await _earlier_tip(service, tip_id, user, prompt)):
            return tip
        raise
    _start_shadow_answer(service, live, prompt)
    counts = (len(prompt.token_ids), answer.tokens)
    return Tip(tip_id, answer.shown, *counts, recorded, answer.cut)


def request_tip(service: Service, request: TipRequest) -> Tip:
    """`create_tip`, for callers without an event loop."""

    async def request_once() -> Tip:
        try:
            return await create_tip(service, request)
        finally:
            await service.runtime.end_writing()  # its connections belong to this event loop

    return asyncio.run(request_once())


def _check(request: TipRequest) -> None:
    if not request.kind or not request.kind.isprintable():
        raise DataError("a tip needs a printable kind; give one")
    if request.tip_id and not TIP_ID.fullmatch(request.tip_id):
        raise DataError("tip_id: give 16 to 64 letters, digits, - or _, drawn at random")


async def _earlier_tip(
    service: Service, tip_id: str, user: HashedIds, prompt: Prompt
) -> Tip | None:
    """The tip that an earlier request with this id got; None while the database is away."""
    row = None
    with (
        move_on_after(service.settings.record_seconds),
        suppress(AwayError, sa.exc.SQLAlchemyError),
    ):
        row = await to_thread.run_sync(
            partial(_stored_tip, service, tip_id), abandon_on_cancel=True
        )
    if row is None:
        return None
    owner, text, is_cut = row
    shown = refill(text, prompt.placeholders)
    if owner not in {each.user_key for each in user} or shown is None:
        raise DataError("tip_id belongs to another request; draw a new one")
    return Tip(tip_id, shown, len(prompt.token_ids), cut=is_cut)


def _stored_tip(service: Service, tip_id: str) -> tuple[str, str, bool] | None:
    """The owner of a tip, its text, and whether it was cut."""
    row = tip_scores.c
    query = sa.select(row.user_key, row.tip_content, row.cut)
    with reading(service.engine) as connection:
        found = connection.execute(query.where(row.tip_id == tip_id)).one_or_none()
    return None if found is None else (found[0], found[1], found[2])


async def live_models(service: Service) -> LiveModels:
    """The models that answer now; the event loop goes on while they are read.

    Raises:
        CanaryError, DataError: as `RolloutWatcher.current`.
    """
    fresh = service.watcher.fresh
    return fresh if fresh is not None else await to_thread.run_sync(service.watcher.current)


async def _answer(
    service: Service, live: LiveModels, arm: Arm, prompt: Prompt, *, user_key: str
) -> Answer:
    """The assigned arm's answer, or the champion's, or a stored tip; of no withdrawn model.

    Raises:
        ReleaseError, UnshowableTipError: there is none.
    """
    answer = await _assigned_or_champion(service, live, arm, prompt, user_key=user_key)
    latest = service.watcher.latest or live
    if answer.model is None or answer.model in (latest.champion, latest.challenger):
        return answer
    answer = await _champion_or_stored(service, latest, prompt, user_key=user_key)
    return replace(answer, fallback="stopped")


async def _assigned_or_champion(
    service: Service, live: LiveModels, arm: Arm, prompt: Prompt, *, user_key: str
) -> Answer:
    if arm == "champion" or live.challenger is None:
        return await _champion_or_stored(service, live, prompt, user_key=user_key)
    limit = service.settings.timeout_seconds
    first = await _write(service, live.challenger, prompt, limit_seconds=limit)
    refused: tuple[GuardVerdict, ...] = first.refused
    if set(refused) == {"cut"} and service.settings.on_cut == "retry":
        first = await _write(service, live.challenger, prompt, limit_seconds=limit)
        refused = (*refused, *first.refused)
    if isinstance(first, Answer):
        return replace(first, refused=refused)
    log.warning("version %d: %s; the champion answers", live.challenger.version, first.reason)
    answer = await _champion_or_stored(service, live, prompt, user_key=user_key)
    return replace(answer, fallback=first.reason, refused=(*refused, *answer.refused))


async def _champion_or_stored(
    service: Service, live: LiveModels, prompt: Prompt, *, user_key: str
) -> Answer:
    reason: Fallback = "blocked"
    refused: tuple[GuardVerdict, ...] = ()
    limit = service.settings.champion_timeout_seconds
    for _ in range(CHAMPION_TRIES):
        answer = await _write(service, live.champion, prompt, limit_seconds=limit)
        refused += answer.refused
        if isinstance(answer, Answer):
            return replace(answer, refused=refused)
        reason = answer.reason
        if reason != "blocked":
            break
    stored = await to_thread.run_sync(partial(_stored_answer, service, prompt, user_key))
    if stored is not None:
        log.warning("version %d: %s; a stored tip is shown", live.champion.version, reason)
        return replace(stored, fallback=reason, refused=refused)
    if reason == "blocked":
        raise UnshowableTipError(
            f"version {live.champion.version} wrote {CHAMPION_TRIES} tips that cannot be shown; "
            "ask again"
        )
    raise ReleaseError(
        f"version {live.champion.version}, the champion, does not answer; check the model server"
    )


async def _write(
    service: Service, model: ModelVersion, prompt: Prompt, *, limit_seconds: float
) -> Answer | NoAnswer:
    """A text of the model with its placeholders filled in: one that passed the guard.

    Where the version has a reward model, that chooses among several.
    """
    started, sampling = time.monotonic(), _sampling(service)
    completions = await _complete(service, model, prompt, sampling, limit_seconds=limit_seconds)
    if isinstance(completions, str):
        return NoAnswer(completions)
    marks = _marks(service, model)
    judged = [judge(each, prompt, service.settings, marks=marks) for each in completions]
    if all(each.verdict != "passed" for each in judged):
        refused = tuple(each.verdict for each in judged)
        return NoAnswer("blocked", refused, completions[0].prompt_tokens)
    left = started + limit_seconds - time.monotonic()
    choice = await _choose(service, model, prompt, judged, limit_seconds=left)
    completion, chosen = completions[choice.chosen], judged[choice.chosen]
    shown = refill(chosen.text, prompt.placeholders)
    assert shown is not None  # else the guard had refused the text
    logged = asdict(replace(sampling, seed=sampling.seed + choice.chosen))
    if completion.logprob is not None and not chosen.is_cut:
        logged["logprob"] = completion.logprob  # of the whole answer
    return Answer(
        model,
        chosen.text,
        shown,
        canonical_json(logged),
        tokens=completion.tokens,
        cut=chosen.is_cut,
        choice=choice if len(completions) > 1 else None,
        tokens_read=completion.prompt_tokens,
    )


async def _choose(
    service: Service,
    model: ModelVersion,
    prompt: Prompt,
    judged: Sequence[Judged],
    *,
    limit_seconds: float,
) -> Choice:
    """One of the texts that passed the guard, by their rewards; the first if there are none."""
    candidates = [
        Candidate(each.text) if each.verdict == "passed" else Candidate(verdict=each.verdict)
        for each in judged
    ]
    if len(candidates) == 1:
        return first_passed(candidates, None)
    texts = [each.text for each in candidates if each.verdict == "passed"]
    problem = "timeout"
    with move_on_after(limit_seconds):
        try:
            own = await _prompt_for(service, model, prompt)
            ids = [tip_token_ids(service.chats[model.name], text) for text in texts]
            rewards, bounds = await service.rewards.of(model, own.token_ids, ids)
            draw = service.draw(RANDOM_BITS) / 2**RANDOM_BITS
            return choose(candidates, rewards, bounds, draw=draw)
        except (DataError, ReleaseError) as error:
            log.warning("version %d: no rewards: %s", model.version, error)
            problem = "error"
    return first_passed(candidates, problem)


async def _complete(
    service: Service,
    model: ModelVersion,
    prompt: Prompt,
    sampling: Sampling,
    *,
    limit_seconds: float,
) -> tuple[Completion, ...] | Literal["error", "timeout"]:
    loop = asyncio.get_running_loop()
    started = loop.time()
    completions = asyncio.ensure_future(_ask(service, model, prompt, sampling))
    try:
        await asyncio.wait({completions}, timeout=limit_seconds)
    finally:
        completions.cancel()
    if not completions.done():
        return "timeout"
    error = completions.exception()
    if error is None:
        return completions.result()
    if loop.time() - started >= limit_seconds:
        return "timeout"  # the model server's own limit expired at the same moment
    # The message may quote the prompt, so only its type is logged.
    log.warning("version %d does not answer: %s", model.version, type(error).__name__)
    service.watcher.report_failure(model)
    return "error"


async def _ask(
    service: Service, model: ModelVersion, prompt: Prompt, sampling: Sampling
) -> tuple[Completion, ...]:
    own = await _prompt_for(service, model, prompt)
    count = service.settings.candidates if model.reward else 1
    return await service.runtime.write(model, own.text, sampling, count=count)


async def _prompt_for(service: Service, model: ModelVersion, prompt: Prompt) -> Prompt:
    """The prompt as the version was trained to read it: by its own template, and on its day.

    Raises:
        ReleaseError: its prompt folder is broken.
    """
    chat = service.chats.get(model.name)
    if chat is None:
        chat = await to_thread.run_sync(partial(chat_of_version, service.chat, model))
        service.chats[model.name] = chat
    return prompt if chat.template == service.chat.template else rendered_for(chat, prompt)


def _marks(service: Service, model: ModelVersion) -> tuple[str, ...]:
    return service.chats.get(model.name, service.chat).marks


def _sampling(service: Service) -> Sampling:
    settings = service.settings
    return Sampling(
        settings.temperature, settings.top_p, settings.max_tokens, seed=service.draw(31)
    )


def _stored_answer(service: Service, prompt: Prompt, user_key: str) -> Answer | None:
    """A tip of this kind that this user liked, else one of `good_tips`, if any passes the guard."""
    listed = service.settings.good_tips
    good = listed.get(prompt.kind) or listed.get("*", ())
    for texts in (_liked_tips(service, prompt.kind, user_key), good):
        fit = [text for text in texts if _may_be_shown(service, text, prompt)]
        if fit:
            text = fit[service.draw(16) % len(fit)]
            return Answer(None, text, text, None, source="stored")
    return None


def _may_be_shown(service: Service, text: str, prompt: Prompt) -> bool:
    return judge_text(text, prompt, service.settings, marks=service.chat.marks) == "passed"


def _liked_tips(service: Service, kind: str, user_key: str) -> Sequence[str]:
    row, liked = tip_scores.c, label_rule(service.labels).positive_condition()
    # Placeholders of another request cannot be filled in.
    here = sa.and_(
        row.user_key == user_key, row.kind == kind, row.tip_content.not_like("%<%"), ~row.cut
    )
    query = sa.select(row.tip_content).where(here, liked).order_by(row.reacted_at.desc())
    try:
        with reading(service.engine) as connection:
            return connection.execute(query.limit(MAX_LIKED_TIPS)).scalars().all()
    except DataError:
        return ()


async def _record(service: Service, event: TipCreated) -> bool:
    """Whether the exposure is on disk; False while the database is away."""
    timeout = service.settings.record_seconds
    try:
        status = await service.recorder.write(event, timeout_seconds=timeout)
    except sa.exc.IntegrityError:
        raise
    except (AwayError, sa.exc.SQLAlchemyError) as error:
        log.error("a tip is not recorded: %s", type(error.__cause__ or error).__name__)
        return False
    if status == "erased":
        raise DataError("the user was erased while their tip was written; ask again")
    for listener in service.listeners:
        listener(event.exposure)
    return True


def _start_shadow_answer(service: Service, live: LiveModels, prompt: Prompt) -> None:
    """In the shadow phase the challenger answers too, after the tip; nobody sees its text."""
    is_shadow = live.rollout.phase == "shadow" and live.challenger is not None
    if is_shadow and len(service.shadow_tasks) < MAX_SHADOW_TASKS:
        task = asyncio.create_task(_answer_in_shadow(service, live, prompt))
        service.shadow_tasks.add(task)
        task.add_done_callback(service.shadow_tasks.discard)


async def _answer_in_shadow(service: Service, live: LiveModels, prompt: Prompt) -> None:
    assert live.challenger is not None
    assert live.rollout_id is not None
    started, limit = time.perf_counter(), service.settings.timeout_seconds
    answer = await _write(service, live.challenger, prompt, limit_seconds=limit)
    verdict: str = "passed"
    if isinstance(answer, NoAnswer):
        verdict = answer.refused[0] if answer.refused else answer.reason
    if answer.tokens_read is not None:
        prompt = await _prompt_for(service, live.challenger, prompt)
    counted = ShadowAnswer(
        answer_id=f"{service.draw(128):032x}",
        rollout_id=live.rollout_id,
        verdict=verdict,
        answer_ms=round(1000 * (time.perf_counter() - started)),
        prompt_tokens=len(prompt.token_ids),
        tokens_read=answer.tokens_read,
        at=service.clock(),
    )
    try:
        await service.recorder.write(counted)
    except (DataError, sa.exc.SQLAlchemyError) as error:
        # The rollout may have ended meanwhile, or the database is away: nobody waits for this.
        log.warning("a shadow answer is not counted: %s", type(error).__name__)


async def record_shown(service: Service, tip_id: str) -> Status:
    """Record that the user sees the tip now; of several calls the first stands.

    Only shown tips are compared. A reaction does not imply this call: otherwise an app that omits
    it would be judged on the users who reacted alone.

    Raises:
        UnknownTipError: no tip can have this id, or the tip was erased.
        DataError: the database does not answer.
    """
    _check_tip_id(tip_id)
    return _known(await service.recorder.write(TipShown(tip_id, service.clock())))


async def record_reaction(
    service: Service, tip_id: str, reaction: Reaction, dwell_ms: int
) -> Status:
    """Record the user's reaction, and for how many milliseconds the tip was visible before it.

    A later reaction replaces the earlier one; an equal one changes nothing. `kept` where the tip
    is not known yet.

    Raises:
        UnknownTipError: no tip can have this id, or the tip was erased.
        DataError: an unknown reaction, a dwell time out of range, or the database does not answer.
    """
    if reaction not in REACTIONS:
        raise DataError(f"unknown reaction; give one of {', '.join(REACTIONS)}")
    if type(dwell_ms) is not int or not 0 <= dwell_ms <= MAX_DWELL_MS:
        raise DataError(f"dwell_ms = {dwell_ms!r}: give milliseconds, 0 to {MAX_DWELL_MS}")
    _check_tip_id(tip_id)
    event = TipReaction(tip_id, reaction, dwell_ms, service.clock())
    return _known(await service.recorder.write(event))


def _check_tip_id(tip_id: str) -> None:
    if not is_tip_id(tip_id):
        raise UnknownTipError("no tip has such an id; use the id of the answer")


def _known(status: Status) -> Status:
    if status == "erased":
        raise UnknownTipError("the tip was erased with its user's data")
    return status
