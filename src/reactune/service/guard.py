"""Who writes a tip: the challenger, else the champion, else a tip that was good before.

Every text passes the guard. What becomes of the answer is told in `serving.py`.
"""

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Literal

import sqlalchemy as sa
from anyio import to_thread

from reactune.config.sections import ServeConfig
from reactune.errors import CanaryError, DataError, ReleaseError
from reactune.pii.detectors import by_form
from reactune.pii.spans import refill, scrub
from reactune.records import (
    Arm,
    Completion,
    ModelVersion,
    Prompt,
    Sampling,
    canonical_json,
    plain_words,
)
from reactune.service.events import Silent
from reactune.service.rollout_watcher import Lineup
from reactune.service.state import Service
from reactune.store.database import reading
from reactune.store.labels import label_rule
from reactune.store.schema import tip_scores

GuardVerdict = Literal[
    "passed", "empty", "overlong", "repeated", "placeholder", "personal data", "unsafe", "garbled"
]
UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # NUL and half surrogates: no database takes them
GRAM = 4  # words: three times the same four are a loop
LOOPS = 3


def judge_text(text: str, prompt: Prompt, settings: ServeConfig) -> GuardVerdict:
    """The first thing that is wrong with a text, or `passed`.

    `personal data` is what shows by its form: what the context held the model knows as
    placeholders only, and a name that it made up is nobody's. `repeated` is a loop in the text, or
    a tip that the context names among `recent_tips`.
    """
    if UNSTORABLE.search(text):
        return "garbled"
    shown = refill(text, prompt.placeholders)
    if not text or shown == "":
        return "empty"
    if shown is None:
        return "placeholder"
    if len(shown) > settings.max_tip_chars:
        return "overlong"
    if _holds_personal_data(text, prompt):
        return "personal data"
    if _is_unsafe(shown, settings.unsafe_texts):
        return "unsafe"
    if _loops(text) or plain_words(text) in _recent_tips(prompt):
        return "repeated"
    return "passed"


def _holds_personal_data(text: str, prompt: Prompt) -> bool:
    found: dict[str, str] = {}
    scrub(text, placeholders=found, detect=by_form)
    return any(value not in prompt.text for value in found.values())


def _is_unsafe(shown: str, listed: tuple[str, ...]) -> bool:
    plain = f" {plain_words(shown)} "
    return any(f" {plain_words(each)} " in plain for each in listed if plain_words(each))


def _loops(text: str) -> bool:
    words = plain_words(text).split()
    grams = Counter(tuple(words[at : at + GRAM]) for at in range(len(words) - GRAM + 1))
    sentences = Counter(filter(None, map(plain_words, re.split(r"[.!?\n]+", text))))
    return any(count >= LOOPS for count in (*grams.values(), *sentences.values()))


def _recent_tips(prompt: Prompt) -> set[str]:
    recent = prompt.context.get("recent_tips", [])
    return {plain_words(each) for each in ([recent] if isinstance(recent, str) else recent)}


Fallback = Literal["error", "timeout", "blocked", "stopped"]

CHAMPION_DRAWS = 3  # the champion has nobody but stored tips behind it: the unfit is drawn again
REMEMBERED_TIPS = 20

log = logging.getLogger(__name__)


class UnshowableTipError(CanaryError):
    """The champion wrote nothing that may be shown, however often it was asked."""


@dataclass(frozen=True)
class Answer:
    """A text that may be shown, as it is stored and as the user gets it.

    `refused` are the guard's verdicts on what was not shown. A stored tip has no model and
    the source `stored`, so it is evidence for nobody.
    """

    model: ModelVersion | None
    text: str
    shown: str
    sampling_json: str | None
    source: Literal["llm", "stored"] = "llm"
    fallback: Fallback | None = None
    refused: tuple[GuardVerdict, ...] = ()
    tokens: int = 0

    @property
    def guard(self) -> str:
        """What the row says of the guard: `passed`, after the verdicts on what it refused."""
        return ",".join((*self.refused, "passed"))


async def answer_tip(
    service: Service, live: Lineup, arm: Arm, prompt: Prompt, *, person: str
) -> Answer:
    """The first of challenger (where the unit is its), champion and stored tips that gives one.

    Raises:
        ReleaseError, UnshowableTipError: none of them did.
    """
    refused: tuple[GuardVerdict, ...] = ()
    fallback: Fallback | None = None
    if arm == "challenger" and live.challenger is not None:
        written = await _challenger_answer(service, live.challenger, prompt)
        if isinstance(written, Answer):
            return written
        fallback, refused = written
        log.warning("version %d: %s; the champion answers", live.challenger.version, fallback)
    return await fall_back(service, live, prompt, person=person, because=fallback, refused=refused)


async def fall_back(
    service: Service,
    live: Lineup,
    prompt: Prompt,
    *,
    person: str,
    because: Fallback | None,
    refused: tuple[GuardVerdict, ...] = (),
) -> Answer:
    """The champion's answer, or a stored tip; `because` says why the challenger's is not there.

    Raises:
        ReleaseError, UnshowableTipError: neither gives one.
    """
    written = await _champion_answer(service, live.champion, prompt)
    if isinstance(written, Answer):
        return replace(written, fallback=because, refused=(*refused, *written.refused))
    failed, reason, more = written
    stored = await to_thread.run_sync(partial(_stored_answer, service, prompt, person))
    if stored is None:
        raise failed
    log.warning("version %d: %s; a stored tip is shown", live.champion.version, reason)
    return replace(stored, fallback=because or reason, refused=(*refused, *more))


async def answer_silently(service: Service, live: Lineup, prompt: Prompt) -> Silent:
    """How the challenger answers a prompt when nobody sees it; what it wrote is not kept."""
    assert live.challenger is not None
    loop = asyncio.get_running_loop()
    started, sampling = loop.time(), _sampling(service)
    limit = service.settings.timeout_seconds
    completion = await _write(service, live.challenger, prompt, sampling, limit=limit)
    verdict: str = (
        completion
        if isinstance(completion, str)
        else judge_text(completion.text.strip(), prompt, service.settings)
    )
    return Silent(
        {
            "answer_id": f"{service.draw(128):032x}",
            "rollout_id": live.rollout_id,
            "verdict": verdict,
            "answer_ms": round(1000 * (loop.time() - started)),
            "prompt_tokens": len(prompt.token_ids),
            "tokens_read": None if isinstance(completion, str) else completion.prompt_tokens,
            "at": service.clock(),
        }
    )


async def _challenger_answer(
    service: Service, model: ModelVersion, prompt: Prompt
) -> Answer | tuple[Fallback, tuple[GuardVerdict, ...]]:
    sampling = _sampling(service)
    limit = service.settings.timeout_seconds
    completion = await _write(service, model, prompt, sampling, limit=limit)
    if isinstance(completion, str):
        return completion, ()
    answer = _guarded(service, model, prompt, completion, sampling)
    return answer if isinstance(answer, Answer) else ("blocked", (answer,))


async def _champion_answer(
    service: Service, model: ModelVersion, prompt: Prompt
) -> Answer | tuple[ReleaseError | UnshowableTipError, Fallback, tuple[GuardVerdict, ...]]:
    refused: tuple[GuardVerdict, ...] = ()
    limit = service.settings.champion_timeout_seconds
    for _ in range(CHAMPION_DRAWS):
        sampling = _sampling(service)
        completion = await _write(service, model, prompt, sampling, limit=limit)
        if isinstance(completion, str):
            error = ReleaseError(
                f"version {model.version}, the champion, does not answer; see to the model server"
            )
            return error, completion, refused
        answer = _guarded(service, model, prompt, completion, sampling)
        if isinstance(answer, Answer):
            return replace(answer, refused=refused)
        refused += (answer,)
    unfit = UnshowableTipError(
        f"version {model.version} wrote {CHAMPION_DRAWS} tips that cannot be shown; ask again"
    )
    return unfit, "blocked", refused


async def _write(
    service: Service,
    model: ModelVersion,
    prompt: Prompt,
    sampling: Sampling,
    *,
    limit: float,
) -> Completion | Literal["error", "timeout"]:
    """What the model writes within `limit` seconds; every failure of it is an ordinary state."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    writing_it = asyncio.ensure_future(service.runtime.write(model, prompt.text, sampling))
    try:
        await asyncio.wait({writing_it}, timeout=limit)
    finally:
        writing_it.cancel()
    if not writing_it.done():
        return "timeout"
    error = writing_it.exception()
    if error is None:
        return writing_it.result()
    if loop.time() - started >= limit:
        return "timeout"  # the server's own limit ran out in the same moment
    # The message may quote the prompt, so only its type is told.
    log.warning("version %d does not answer: %s", model.version, type(error).__name__)
    service.live.doubt(model)
    return "error"


def _guarded(
    service: Service,
    model: ModelVersion,
    prompt: Prompt,
    completion: Completion,
    sampling: Sampling,
) -> Answer | GuardVerdict:
    """The answer with its placeholders filled in again, or what speaks against showing it."""
    text = completion.text.strip()
    verdict = judge_text(text, prompt, service.settings)
    shown = refill(text, prompt.placeholders)
    if verdict != "passed" or shown is None:
        return verdict
    settings = asdict(sampling)
    if completion.logprob is not None:
        settings["logprob"] = completion.logprob
    return Answer(model, text, shown, canonical_json(settings), tokens=completion.tokens)


def _stored_answer(service: Service, prompt: Prompt, person: str) -> Answer | None:
    """A tip of this kind that this user liked, else one of the settings; None if there is none."""
    for texts in (_liked_tips(service, prompt.kind, person), _good_tips(service, prompt.kind)):
        fit = [text for text in texts if judge_text(text, prompt, service.settings) == "passed"]
        if fit:
            text = fit[service.draw(16) % len(fit)]
            return Answer(None, text, text, None, source="stored")
    return None


def _good_tips(service: Service, kind: str) -> Sequence[str]:
    listed = service.settings.good_tips
    return listed.get(kind) or listed.get("*", ())


def _liked_tips(service: Service, kind: str, person: str) -> Sequence[str]:
    row, liked = tip_scores.c, label_rule(service.labels).positive_condition()
    # Placeholders of another request cannot be filled in, so such a tip is of no use.
    here = sa.and_(row.user_key == person, row.kind == kind, row.tip_content.not_like("%<%"))
    query = sa.select(row.tip_content).where(here, liked).order_by(row.reacted_at.desc())
    try:
        with reading(service.engine) as connection:
            return connection.execute(query.limit(REMEMBERED_TIPS)).scalars().all()
    except DataError:
        return ()


def _sampling(service: Service) -> Sampling:
    of = service.settings
    return Sampling(of.temperature, of.top_p, of.max_tokens, seed=service.draw(31))
