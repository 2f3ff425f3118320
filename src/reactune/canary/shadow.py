"""The shadow phase: a challenger answers beside the champion, and nobody sees what it writes.

Counts in, a decision out: may people meet it? Whether they like it, only reactions tell.
"""

from dataclasses import asdict, dataclass

import sqlalchemy as sa

from reactune.canary.compare import Decision
from reactune.config import CanaryConfig
from reactune.store import silent_answers


@dataclass(frozen=True)
class Silence:
    """How many silent answers there are, and what was wrong with some.

    Each has one of the first three faults at most.

    `failed` gave no text, `refused` one that the guard does not let pass, `slow` a good one after
    more than `slow_ms`. `misread` are those for which the model server counted other prompt
    tokens than our template gives: it applies another one.
    """

    answers: int
    failed: int
    refused: int
    slow: int
    misread: int

    def line(self) -> str:
        """One line for the person at the terminal."""
        return (
            f"{self.answers:,} silent answers: {self.failed:,} failed, {self.refused:,} refused "
            f"by the guard, {self.slow:,} slow, {self.misread:,} read by another template"
        )


def read_silence(connection: sa.Connection, rollout_id: str, *, slow_ms: int) -> Silence:
    """What is known of a rollout's silent answers by now."""
    of = silent_answers.c
    passed = of.verdict == "passed"
    none = of.verdict.in_(("error", "timeout"))
    faults = {
        "failed": none,
        "refused": sa.not_(passed | none),
        "slow": passed & (of.answer_ms > slow_ms),
        "misread": of.tokens_read != of.prompt_tokens,
    }
    counts = [sa.func.count().filter(fault).label(name) for name, fault in faults.items()]
    query = sa.select(sa.func.count().label("answers"), *counts)
    row = connection.execute(query.where(of.rollout_id == rollout_id)).mappings().one()
    return Silence(**row)


def judge_silence(seen: Silence, *, settings: CanaryConfig) -> Decision:
    """Roll back a challenger that is not fit to be met; otherwise wait, for answers or people."""
    faults = seen.failed + seen.refused + seen.slow
    allowed = settings.shadow_faults * max(seen.answers, settings.shadow_answers)
    numbers = {**asdict(seen), "allowed": settings.shadow_faults, "of": settings.shadow_answers}
    if seen.misread:
        return Decision(
            "roll back", f"its prompts are read by another template: {seen.line()}", numbers
        )
    if faults > allowed:
        return Decision("roll back", f"not fit to be met: {seen.line()}", numbers)
    if seen.answers < settings.shadow_answers:
        told = f"{seen.answers:,} of {settings.shadow_answers:,} silent answers"
        return Decision("wait", told, numbers)
    return Decision("wait", f"fit to be met: {seen.line()}", numbers)


def first_share(seen: Silence, decision: Decision, *, settings: CanaryConfig) -> float | None:
    """The share with which people meet it, or None as long as there are too few silent answers."""
    if decision.verdict != "wait" or seen.answers < settings.shadow_answers:
        return None
    return settings.share
