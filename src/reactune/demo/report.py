"""The demo's report: one page about the reactions, the training and the decision of a cycle.

Beside the models stand two policies without a model; a challenger that earns no more than the
shortest or the most popular tip has learned nothing.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from reactune import deployment
from reactune.canary.compare import bounds_over_time
from reactune.canary.outcomes import Outcomes, read_outcomes
from reactune.config.sections import LabelConfig
from reactune.config.settings import Config
from reactune.demo.audience import Audience, Town, Visit, expected_harm, expected_reward
from reactune.pages import pictures
from reactune.pages.report import Page, Section, write_report
from reactune.records import Rollout
from reactune.runs.manifest import manifests
from reactune.store.database import reading
from reactune.store.labels import label_rule
from reactune.store.schema import tip_scores
from reactune.tracking import gate_table, judge_table

TIPS_SHOWN = 5
CHOICES_SHOWN = 3
RATE_BATCHES = 60

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
    figures: dict[str, str] = {}
    if last.rollout is not None:
        outcomes = _outcomes(config, last.rollout, now)
        figures |= _rates(outcomes)
        sections.append(_reactions(config, last.rollout, outcomes))
    if last.after:
        values = policy_values(last, audience, config)
        figures["tips that the challenger wrote"] = f"{len(last.after):,}"
        sections.append(_policies(values))
        sections.append(_five_tips(last))
        sections += candidates_shown(config, last)
    sections += _training(last.run)
    sections.append(_time(last))
    if len(cycles) > 1:
        sections.insert(0, _cycles(cycles))
    file = config.folder / "report.html"
    write_report(Page("reactune demo", last.verdict, figures, sections), file)
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


def _rates(outcomes: Outcomes) -> dict[str, str]:
    figures = {}
    for name, chosen in (("champion", ~outcomes.challenger), ("challenger", outcomes.challenger)):
        tips = int(outcomes.tips[chosen].sum())
        rate = outcomes.positives[chosen].sum() / max(tips, 1)
        figures[f"done after 15 s to 2 min: {name}, {tips:,} tips"] = f"{rate:.1%}"
    return figures


def _reactions(config: Config, rollout: Rollout, outcomes: Outcomes) -> Section:
    path = bounds_over_time(outcomes, settings=config.canary, planned_units=rollout.planned_units)
    effect = path.effect
    known = len(effect.estimate)
    units = [(place + 1) * len(outcomes.tips) / max(known, 1) for place in range(known)]
    difference = pictures.bounds(
        units,
        effect.estimate.tolist(),
        effect.low.tolist(),
        effect.high.tolist(),
        share_steps=_steps(outcomes),
    )
    return Section(
        title="Reactions by arm",
        text="Challenger minus champion, in positives per shown tip, with bounds that hold at "
        "every review. A unit is one user on one day. Dotted lines: the challenger's share grew.",
        pictures=(pictures.draw(difference), pictures.draw(pictures.arms(_by_arm(outcomes)))),
    )


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
    rewards = pictures.bars("expected positives per tip", {n: v.reward for n, v in values.items()})
    return Section(
        title="What other policies would have earned",
        text="The expected share of positives on the same visits, as the audience itself states "
        "it, without the noise of reactions. A model that does not beat a policy without a model "
        "has learned nothing.",
        pictures=(pictures.draw(rewards),),
        head=("policy", "positives per tip", "quick dismissals per tip", "tips"),
        rows=tuple(
            (n, f"{v.reward:.1%}", f"{v.harm:.1%}", f"{v.tips:,}") for n, v in values.items()
        ),
    )


def _five_tips(cycle: CycleResult) -> Section:
    pairs = list(zip(cycle.before, cycle.after, strict=True))
    step = max(1, len(pairs) // TIPS_SHOWN)
    return Section(
        title="Five tips, before and after",
        text="Base model and challenger on the same visits, at even distances in time.",
        head=("kind and context", "base model", "challenger"),
        rows=tuple(
            (f"{visit.kind}: {_context(visit)}", before, after)
            for (_, before), (visit, after) in pairs[::step][:TIPS_SHOWN]
        ),
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
    rows = []
    for number, choice in enumerate(choices[::step][:CHOICES_SHOWN], 1):
        for place, each in enumerate(choice["candidates"]):
            shown = "shown" if place == choice["chosen"] else ""
            if each["verdict"] != "passed":
                rows.append((str(number), f"(refused: {each['verdict']})", "", "", "", shown))
                continue
            values = (f"{each['reward']:+.2f}", f"{each['bound']:+.2f}", f"{each['chance']:.0%}")
            rows.append((str(number), each["text"], *values, shown))
    return [
        Section(
            title="Three tips and their candidates",
            text="The reward is the log-odds that a tip is liked in its context, against the "
            "average tip. The choice is drawn, by the lower bounds; the chance is logged.",
            head=("tip", "candidate", "reward", "lower bound", "chance", ""),
            rows=tuple(rows),
        )
    ]


def _context(visit: Visit) -> str:
    return "; ".join(
        ", ".join(value) if isinstance(value, list) else str(value)
        for key, value in visit.context.items()
        if key in ("time_of_day", "open_tasks")
    )


def _training(run: Path) -> list[Section]:
    sections = []
    loss, gate = run / "train" / "loss.svg", run / "evaluate" / "gate.json"
    if loss.is_file():
        summary = manifests(run)["train"].summary
        sections.append(Section("Training", summary, pictures=(loss.read_text(encoding="utf-8"),)))
    if gate.is_file():
        table = json.loads(gate.read_text(encoding="utf-8"))
        sections.append(
            Section(
                title="Gate",
                text="Held-out users; 95 % intervals. Loss is per token of liked tips; preference "
                "accuracy is how often a liked tip ranks above a disliked one of its kind. The "
                "win rate is that of the tuned model's tips over this one's, by rewards of people "
                "whose reactions trained neither.",
                pictures=((run / "evaluate" / "gate.svg").read_text(encoding="utf-8"),),
                head=("model", "loss", "preference accuracy", "by gain over the base", "win rate"),
                rows=tuple(gate_table(table)),
            )
        )
        sections.append(
            Section(
                title="What the models write",
                text="On the same held-out contexts: texts that would be shown, their mean reward "
                "by the model that chooses at serving, words of a tip, "
                "the share of different pairs of words, how alike two tips are (Jaccard index of "
                "their words), and how probable the base model finds them (mean log-probability).",
                head=(
                    "model",
                    "shown",
                    "reward",
                    "words",
                    "distinct pairs",
                    "similarity",
                    "log-probability",
                ),
                rows=tuple(judge_table(table)),
            )
        )
    return sections


def _time(cycle: CycleResult) -> Section:
    stages = {f"stage {name}": m.seconds for name, m in manifests(cycle.run).items()}
    seconds = {
        "reactions to the champion": max(0.0, cycle.seconds_before_rollout - sum(stages.values())),
        **stages,
        "reactions to both": cycle.rollout_seconds,
    }
    minutes = pictures.bars("minutes", {name: s / 60 for name, s in seconds.items()})
    return Section(
        title="Where the time went",
        text="Of this cycle, on this machine.",
        pictures=(pictures.draw(minutes),),
        head=("step", "seconds"),
        rows=tuple((name, f"{value:,.0f}") for name, value in seconds.items()),
    )


def _cycles(cycles: Sequence[CycleResult]) -> Section:
    return Section(
        title="Cycles of the loop",
        text="Each trains on all reactions so far; the sections below are about the last one.",
        head=("cycle", "run", "result"),
        rows=tuple((str(n), each.run.name, each.verdict) for n, each in enumerate(cycles, 1)),
    )
