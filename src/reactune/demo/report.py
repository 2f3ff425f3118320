"""The demo's report: one page about the reactions, the training and the decision of a cycle.

Beside the models stand two policies without a model; a challenger that earns no more than the
shortest or the most popular tip has learned nothing.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import isfinite
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from reactune import deployment
from reactune.canary.compare import bounds_over_time
from reactune.canary.outcomes import Outcomes, read_outcomes
from reactune.config.sections import LabelConfig
from reactune.config.settings import Config
from reactune.demo.audience import Audience, Town, Visit, expected_harm, expected_reward
from reactune.pages import facts, pictures
from reactune.pages.report import Report, write
from reactune.pages.tables import Figure, Picture, Section, Table, percent, plural, points
from reactune.pages.views import candidates_table, run_page
from reactune.records import Rollout
from reactune.runs.manifest import manifests
from reactune.store.database import reading
from reactune.store.labels import label_rule
from reactune.store.schema import tip_scores

TIPS_SHOWN = 5
CHOICES_SHOWN = 3
RATE_BATCHES = 60
ROWS = 20  # of the table of a curve

Policy = Callable[[Visit], str]


@dataclass(frozen=True)
class PastTip:
    """A tip that was shown before, and whether it became a positive."""

    kind: str
    tip: str
    is_positive: bool


@dataclass(frozen=True)
class PolicyValue:
    """Shares of positives and negatives among the tips of a policy, and the number of tips."""

    reward: float
    harm: float
    tips: int


@dataclass(frozen=True)
class CycleResult:
    """One cycle of the loop: its run, the rollout it led to, and how it ended.

    `before` pairs visits with the base model's tips, `after` the same visits with the
    challenger's, and `unchosen` with the first of the challenger's candidates that passed the
    guard. `past` holds all tips shown before the training. Times are in seconds.
    """

    run: Path
    rollout: Rollout | None
    verdict: str
    before: Sequence[tuple[Visit, str]]
    after: Sequence[tuple[Visit, str]]
    unchosen: Sequence[tuple[Visit, str]]
    past: Sequence[PastTip]
    seconds_before_rollout: float
    rollout_seconds: float


def write_demo_report(
    config: Config,
    cycles: Sequence[CycleResult],
    audience: Callable[[], Audience],
    *,
    now: datetime,
) -> Path:
    """Write `report.html` into the demo's folder; `audience` makes one that has seen no tip."""
    last = cycles[-1]
    sections: list[Section] = []
    if last.rollout is not None:
        outcomes = _outcomes(config, last.rollout, now)
        sections.append(_reactions(config, last, outcomes))
    if last.after:
        sections.append(_policies(policy_values(last, audience, config)))
        sections.append(_five_tips(last))
        sections += candidates_shown(config, last)
    sections += _of_run(config, last.run)
    sections.append(_time(last))
    if len(cycles) > 1:
        sections.insert(0, _cycles(cycles))
    file = config.folder / "report.html"
    report = Report("reactune demo", last.verdict, sections, note="the users are simulated")
    write(report, file, now=now)
    return file


def policy_values(
    cycle: CycleResult, audience: Callable[[], Audience], config: Config
) -> dict[str, PolicyValue]:
    """What challenger, base model and the two policies earn on the challenger's visits."""
    visits = [visit for visit, _ in cycle.after]
    shortest, popular = shortest_tip(cycle.past), most_popular_tip(cycle.past)
    shown = {
        "challenger": cycle.after,
        **({"challenger without its reward": cycle.unchosen} if cycle.unchosen else {}),
        "the base model": cycle.before,
        "the shortest tip": [(visit, shortest(visit)) for visit in visits],
        "the most popular tip": [(visit, popular(visit)) for visit in visits],
    }
    return {
        name: policy_value(audience(), tips, labels=config.labels) for name, tips in shown.items()
    }


def shortest_tip(past: Sequence[PastTip]) -> Policy:
    """The policy that always shows the tip of the asked kind with the fewest characters."""
    return _one_per_kind(past, lambda tip, _: (-len(tip), tip))


def most_popular_tip(past: Sequence[PastTip]) -> Policy:
    """The policy that always shows the tip of the kind with the highest (k + 1) / (n + 2).

    k of n reactions were positive (rule of succession); the shorter tip wins a tie.
    """
    return _one_per_kind(
        past, lambda tip, results: ((sum(results) + 1) / (len(results) + 2), -len(tip), tip)
    )


def policy_value(
    audience: Audience, shown: Iterable[tuple[Visit, str]], *, labels: LabelConfig
) -> PolicyValue:
    """What these tips earn from an audience that has seen none; repeated tips earn less.

    The built-in audience gives probabilities, without the noise of reactions; another one
    reacts once to each tip.
    """
    rule = label_rule(labels)
    rewards: list[float] = []
    harms: list[float] = []
    for visit, tip in shown:
        if isinstance(audience, Town):
            rewards.append(expected_reward(audience, visit, tip, labels=labels))
            harms.append(expected_harm(audience, visit, tip, labels=labels))
            audience.remember(visit, tip)
        else:
            response = audience.react(visit, tip)
            reaction = response.reaction, response.dwell_ms
            rewards.append(float(rule.positive.includes(*reaction)))
            harms.append(float(rule.negative.includes(*reaction)))
    count = len(rewards)
    return PolicyValue(
        reward=sum(rewards) / count if count else 0.0,
        harm=sum(harms) / count if count else 0.0,
        tips=count,
    )


def _one_per_kind(
    past: Sequence[PastTip],
    rank: Callable[[str, list[bool]], tuple[float, ...] | tuple[object, ...]],
) -> Policy:
    results: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for shown in past:
        results[shown.kind][shown.tip].append(shown.is_positive)
    best = {
        kind: max(tips, key=lambda tip, tips=tips: rank(tip, tips[tip]))  # type: ignore[misc]
        for kind, tips in results.items()
    }
    return lambda visit: best.get(visit.kind, "")


def arms_of(config: Config, rollout: Rollout) -> dict[str, tuple[str, str | None]]:
    """Arm and fallback of every tip of a rollout; the fallback is None where the arm answered."""
    columns = (tip_scores.c.tip_id, tip_scores.c.arm, tip_scores.c.fallback)
    query = sa.select(*columns).where(tip_scores.c.rollout_id == rollout.rollout_id)
    with deployment.database(config) as engine, reading(engine) as connection:
        return {row.tip_id: (row.arm, row.fallback) for row in connection.execute(query)}


def _outcomes(config: Config, rollout: Rollout, now: datetime) -> Outcomes:
    with deployment.database(config) as engine, reading(engine) as connection:
        return read_outcomes(
            connection,
            rollout.rollout_id,
            labels=config.labels,
            settings=config.canary,
            now=now,
        )


def _reactions(config: Config, cycle: CycleResult, outcomes: Outcomes) -> Section:
    assert cycle.rollout is not None
    planned = cycle.rollout.planned_units
    path = bounds_over_time(outcomes, settings=config.canary, planned_units=planned)
    effect = path.effect
    known = len(effect.estimate)
    units = [(place + 1) * len(outcomes.tips) / max(known, 1) for place in range(known)]
    curves = effect.estimate.tolist(), effect.low.tolist(), effect.high.tolist()
    difference = pictures.bounds(units, *curves, share_steps=_steps(outcomes))
    rows = [
        (round(unit), *(points(value if isfinite(value) else None) for value in values))
        for unit, *values in list(zip(units, *curves, strict=True))[:: -max(1, known // ROWS)]
    ]
    rates = _by_arm(outcomes)
    arms = [
        (round(unit), arm, percent(rate))
        for arm, curve in rates.items()
        for unit, rate in curve[:: -max(1, len(curve) // ROWS)]
    ]
    return Section(
        "Reactions by arm",
        "Challenger minus champion, in positives per shown tip, with bounds that hold at every "
        "review. A unit is one user on one day. Dotted lines: the challenger's share grew.",
        figures=_rates(outcomes),
        pictures=(
            Picture(
                difference,
                "Challenger minus champion; the band holds at every reading",
                Table("difference", "The difference, in points",
                      ("units", "difference", "at least", "at most"), tuple(rows)),
            ),
            Picture(
                pictures.arms(rates),
                "Positives per shown tip of each arm so far",
                Table("arms", "Rates of the arms", ("units", "arm", "positives"), tuple(arms)),
            ),
        ),
    )  # fmt: skip


def _rates(outcomes: Outcomes) -> tuple[Figure, ...]:
    figures = []
    for name, chosen in (("champion", ~outcomes.challenger), ("challenger", outcomes.challenger)):
        tips = int(outcomes.tips[chosen].sum())
        rate = float(outcomes.positives[chosen].sum()) / max(tips, 1)
        figures.append(Figure(name, percent(rate), f"of {plural(tips, 'tip')} are positives"))
    return tuple(figures)


def _steps(outcomes: Outcomes) -> list[tuple[float, float]]:
    """The first unit of each share of the challenger."""
    seen: dict[float, float] = {}
    for place, share in enumerate(outcomes.share.tolist()):
        seen.setdefault(share, float(place))
    return [(place, share) for share, place in seen.items()]


def _by_arm(outcomes: Outcomes) -> dict[str, list[tuple[float, float]]]:
    """For each arm its rate so far, as (units, positives per tip)."""
    curves: dict[str, list[tuple[float, float]]] = {"champion": [], "challenger": []}
    length = len(outcomes.tips)
    for end in range(max(1, length // RATE_BATCHES), length + 1, max(1, length // RATE_BATCHES)):
        arm = outcomes.challenger[:end]
        for name, chosen in (("champion", ~arm), ("challenger", arm)):
            tips = outcomes.tips[:end][chosen].sum()
            if tips:
                rate = float(outcomes.positives[:end][chosen].sum() / tips)
                curves[name].append((float(end), rate))
    return curves


def _policies(values: Mapping[str, PolicyValue]) -> Section:
    rewards = {name: value.reward for name, value in values.items()}
    table = Table(
        "policies",
        "Policies",
        ("policy", "positives per tip", "quick dismissals per tip", "tips"),
        tuple((n, percent(v.reward), percent(v.harm), v.tips) for n, v in values.items()),
    )
    return Section(
        "What other policies would have earned",
        "The expected share of positives on the same visits, as the audience itself states it, "
        "without the noise of reactions. A model that does not beat a policy without a model has "
        "learned nothing.",
        pictures=(
            Picture(
                pictures.bars("expected positives per tip", rewards),
                "Expected positives per tip of each policy",
                table,
            ),
        ),
    )


def _five_tips(cycle: CycleResult) -> Section:
    pairs = list(zip(cycle.before, cycle.after, strict=True))
    step = max(1, len(pairs) // TIPS_SHOWN)
    rows = tuple(
        (f"{visit.kind}: {_context(visit)}", before, after)
        for (_, before), (visit, after) in pairs[::step][:TIPS_SHOWN]
    )
    head = ("kind and context", "base model", "challenger")
    return Section(
        "Five tips, before and after",
        "Base model and challenger on the same visits, at even distances in time.",
        tables=(Table("tips", "Tips", head, rows, is_verbatim=True),),
    )


def choices_of(config: Config, rollout: Rollout) -> dict[str, Mapping[str, Any]]:
    """The candidates of every tip of a rollout among which a reward chose, by the tip's id."""
    row = tip_scores.c
    query = sa.select(row.tip_id, row.choice_json).where(row.rollout_id == rollout.rollout_id)
    query = query.where(row.choice_json.is_not(None)).order_by(row.created_at, row.tip_id)
    with deployment.database(config) as engine, reading(engine) as connection:
        found = {tip_id: json.loads(text) for tip_id, text in connection.execute(query)}
    return {tip_id: each for tip_id, each in found.items() if each["problem"] is None}


def first_candidate(choice: Mapping[str, Any]) -> str:
    """What would have been shown without a reward."""
    passed = (each["text"] for each in choice["candidates"] if each["verdict"] == "passed")
    return str(next(passed))


def candidates_shown(config: Config, cycle: CycleResult) -> list[Section]:
    """The candidates of some tips with their rewards; nothing where no reward chose."""
    assert cycle.rollout is not None
    choices = list(choices_of(config, cycle.rollout).values())
    if not choices:
        return []
    step = max(1, len(choices) // CHOICES_SHOWN)
    table = candidates_table(choices[::step][:CHOICES_SHOWN])
    return [Section("Three tips and their candidates", tables=(table,))]


def _context(visit: Visit) -> str:
    return "; ".join(
        ", ".join(value) if isinstance(value, list) else str(value)
        for key, value in visit.context.items()
        if key in ("time_of_day", "open_tasks")
    )


def _of_run(config: Config, run: Path) -> list[Section]:
    """What the page of a run shows: gate, rewards before and after, learning curve, training."""
    with deployment.database(config) as engine, reading(engine) as connection:
        found = facts.run(connection, run.name)
    return run_page(found) if found else []


def _time(cycle: CycleResult) -> Section:
    stages = {f"stage {name}": m.seconds for name, m in manifests(cycle.run).items()}
    seconds = {
        "reactions to the champion": max(0.0, cycle.seconds_before_rollout - sum(stages.values())),
        **stages,
        "reactions to both": cycle.rollout_seconds,
    }
    minutes = pictures.bars("minutes", {name: s / 60 for name, s in seconds.items()})
    rows = tuple((name, f"{value:,.0f}") for name, value in seconds.items())
    table = Table("time", "Time", ("step", "seconds"), rows)
    return Section(
        "Where the time went",
        "Of this cycle, on this machine.",
        pictures=(Picture(minutes, "Minutes that each step took", table),),
    )


def _cycles(cycles: Sequence[CycleResult]) -> Section:
    rows = tuple((n, each.run.name, each.verdict) for n, each in enumerate(cycles, 1))
    return Section(
        "Cycles of the loop",
        "Each trains on all reactions so far; the sections below are about the last one.",
        tables=(Table("cycles", "Cycles", ("cycle", "run", "result"), rows),),
    )
