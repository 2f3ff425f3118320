"""What is live, and every change of it: one transaction each, and safe to repeat.

A rollout opens in the shadow phase or at the first share of users, grows along the ramp, and ends
with a promotion or a rollback. In the shadow phase the challenger answers beside the champion and
no user sees its answers; `judge_shadow` decides from their counts whether the canary starts.
"""

from dataclasses import asdict, dataclass, replace
from datetime import datetime

import sqlalchemy as sa

from reactune.canary.compare import Decision
from reactune.config.sections import CanaryConfig
from reactune.errors import CanaryError
from reactune.records import Phase, Reason, Rollout, Verdict
from reactune.store import database, queries
from reactune.store.schema import silent_answers


@dataclass(frozen=True)
class Holdback:
    """The share of units that keep the former champion, and the salt that selects them."""

    share: float
    salt: str


@dataclass(frozen=True)
class ShadowReport:
    """How many shadow answers there are, and how many had a fault.

    `failed` have no text, `refused` one that the guard blocks, `slow` a good one after more than
    `slow_ms`; an answer counts in one of the three at most. For `misread` ones the model server
    counted other prompt tokens than our template has: it applies another template.
    """

    answers: int
    failed: int
    refused: int
    slow: int
    misread: int

    def line(self) -> str:
        """One line for the operator."""
        return (
            f"{self.answers:,} shadow answers: {self.failed:,} failed, {self.refused:,} refused "
            f"by the guard, {self.slow:,} slow, {self.misread:,} with another prompt template"
        )


def bootstrap_champion(
    engine: sa.Engine, version: int, *, settings: CanaryConfig, now: datetime
) -> Rollout:
    """Make a version the first champion; repeating it changes nothing.

    Raises:
        CanaryError: another champion is live, or the version is not registered.
    """
    with database.writing(engine) as connection:
        live = queries.hold_rollout(connection)
        if live is not None and live.champion == version:
            return live
        if live is not None:
            raise CanaryError(
                f"version {live.champion} is champion already; open a rollout to replace it"
            )
        _check_registered(connection, version)
        first = Rollout(
            rollout_id=f"{now:%Y%m%d-%H%M%S}-first",
            champion=version,
            challenger=None,
            phase="idle",
            share=0.0,
            salt="",
            unit=settings.unit,
            planned_units=settings.planned_units,
            opened_at=now,
            share_since=now,
        )
        queries.open_rollout(connection, first)
        why = Reason("hand", "first champion", {}, now)
        queries.add_decision(connection, first.rollout_id, "promote", why=why)
        return first


def open_rollout(
    engine: sa.Engine, challenger: int, *, settings: CanaryConfig, salt: str, now: datetime
) -> Rollout:
    """Open a rollout in the shadow phase or at the first share; repeating it changes nothing.

    The salt must be new and random, so that this rollout's units are drawn independently of the
    last one's. Unit, planned size and first share are fixed here; later settings do not change
    them.

    Raises:
        CanaryError: nothing is live yet, another rollout is open, the version is unknown, or the
            share leaves one arm empty.
    """
    if not 0 < settings.share < 1:
        raise CanaryError(
            f"canary.share = {settings.share}: one arm stays empty; set it between 0 and 1"
        )
    with database.writing(engine) as connection:
        live = _locked(connection)
        if live.challenger == challenger:
            return live
        if live.champion == challenger:
            raise CanaryError(f"version {challenger} is the champion; name another challenger")
        _check_registered(connection, challenger)
        opened = Rollout(
            rollout_id=f"{now:%Y%m%d-%H%M%S}-{salt[:8]}",
            champion=live.champion,
            challenger=challenger,
            phase="shadow" if settings.shadow_answers else "canary",
            share=0.0 if settings.shadow_answers else settings.share,
            salt=salt,
            unit=settings.unit,
            planned_units=settings.planned_units,
            opened_at=now,
            share_since=now,
        )
        queries.open_rollout(connection, opened)
        why = Reason("hand", f"opened: {opened.share:.0%} for version {challenger}", {}, now)
        queries.add_decision(connection, opened.rollout_id, "wait", why=why)
        return opened


def promote(
    engine: sa.Engine, rollout: Rollout, why: Reason, *, holdback: Holdback | None = None
) -> Rollout:
    """End the rollout with its challenger as champion; what is live then is returned.

    With a holdback the former champion goes on as the challenger of a rollout of its own. A
    rollout that has ended meanwhile is left as it is.

    Raises:
        CanaryError: the rollout has no challenger.
    """
    champion = _challenger_of(rollout)
    return _close(engine, rollout, "promote", why, champion=champion, holdback=holdback)


def roll_back(engine: sa.Engine, rollout: Rollout, why: Reason) -> Rollout:
    """End the rollout; the champion stays. What is live then is returned.

    A rollout that has ended meanwhile is left as it is.

    Raises:
        CanaryError: the rollout has no challenger.
    """
    _challenger_of(rollout)
    return _close(engine, rollout, "roll back", why, champion=rollout.champion)


def set_share(engine: sa.Engine, rollout: Rollout, share: float, *, why: Reason) -> Rollout:
    """Raise the challenger's share; what is live then is returned.

    A rollout that has moved or ended meanwhile is left as it is.

    Raises:
        CanaryError: the rollout has no challenger, or the share does not grow or reaches 1.
    """
    _challenger_of(rollout)
    if not rollout.share < share < 1:
        raise CanaryError(
            f"share = {share}: name one above {rollout.share} and below 1; a smaller one would "
            "move users away from the challenger, so roll back instead"
        )
    with database.writing(engine) as connection:
        live = _locked(connection)
        if (live.rollout_id, live.share) != (rollout.rollout_id, rollout.share):
            return live
        phase: Phase = "canary" if live.phase == "shadow" else "ramp"
        grown = replace(live, phase=phase, share=share, share_since=why.now)
        queries.update_rollout(connection, grown, why=why)
        return grown


def record_wait(engine: sa.Engine, rollout: Rollout, why: Reason) -> Rollout:
    """Record that a review changed nothing, and on which numbers; what is live is returned.

    Nothing is recorded for a rollout that has ended meanwhile.
    """
    with database.writing(engine) as connection:
        live = _locked(connection)
        if live.rollout_id == rollout.rollout_id:
            queries.add_decision(connection, live.rollout_id, "wait", why=why)
        return live


def read_shadow(connection: sa.Connection, rollout_id: str, *, slow_ms: int) -> ShadowReport:
    """The counts of a rollout's shadow answers so far."""
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
    return ShadowReport(**row)


def judge_shadow(report: ShadowReport, *, settings: CanaryConfig) -> Decision:
    """Roll back a challenger with too many faults; otherwise wait, for answers or for users."""
    faults = report.failed + report.refused + report.slow
    allowed = settings.shadow_faults * max(report.answers, settings.shadow_answers)
    numbers = {**asdict(report), "allowed": settings.shadow_faults, "of": settings.shadow_answers}
    if report.misread:
        reason = f"the model server applies another prompt template: {report.line()}"
        return Decision("roll back", reason, numbers)
    if faults > allowed:
        return Decision("roll back", f"shadow phase failed: {report.line()}", numbers)
    if report.answers < settings.shadow_answers:
        reason = f"{report.answers:,} of {settings.shadow_answers:,} shadow answers"
        return Decision("wait", reason, numbers)
    return Decision("wait", f"shadow phase passed: {report.line()}", numbers)


def first_share(
    report: ShadowReport, decision: Decision, *, settings: CanaryConfig
) -> float | None:
    """The share of users after a passed shadow phase; None while that is not over."""
    if decision.verdict != "wait" or report.answers < settings.shadow_answers:
        return None
    return settings.share


def _close(
    engine: sa.Engine,
    rollout: Rollout,
    verdict: Verdict,
    why: Reason,
    *,
    champion: int,
    holdback: Holdback | None = None,
) -> Rollout:
    with database.writing(engine) as connection:
        live = _locked(connection)
        if live.rollout_id != rollout.rollout_id:
            return live
        successor = replace(
            live,
            rollout_id=f"{live.rollout_id}{queries.AFTER}",
            champion=champion,
            challenger=live.champion if holdback else None,
            phase="holdback" if holdback else "idle",
            share=holdback.share if holdback else 0.0,
            salt=holdback.salt if holdback else "",
            opened_at=why.now,
            share_since=why.now,
        )
        queries.close_rollout(connection, live.rollout_id, verdict, why=why, successor=successor)
        return successor


def _locked(connection: sa.Connection) -> Rollout:
    """What is live, and stays so until the transaction ends."""
    database.lock(connection, database.ROLLOUT_LOCK)
    return queries.live_rollout(connection)


def _challenger_of(rollout: Rollout) -> int:
    if rollout.challenger is None:
        raise CanaryError(
            f"rollout {rollout.rollout_id} has no challenger (champion {rollout.champion}); "
            "`reactune deploy` opens one"
        )
    return rollout.challenger


def _check_registered(connection: sa.Connection, version: int) -> None:
    known = [model.version for model in queries.all_model_versions(connection)]
    if version not in known:
        raise CanaryError(f"version {version} is not registered; known versions: {known}")
