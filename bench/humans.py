"""False and true positives of the rules of a dataset that remove automated reactions.

Users are the demo's audience, reacting to tips of its pool for some days. Among them are planted
bots: fast ones, ones with a constant dwell time, and ones that give most reactions of a kind.
"""

import argparse
import random
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from reactune.config.sections import DatasetConfig, LabelConfig
from reactune.data.dataset.rules import (
    keep_only,
    load,
    without_bursts,
    without_constant_dwell,
    without_dominant_users,
)
from reactune.data.labelled import clean_schema, workspace
from reactune.demo.audience import FIRST_DAY, Town
from reactune.demo.pool import read_pool
from reactune.store.labels import label_rule
from record import record

RULES = {
    "fast": without_bursts,
    "constant": without_constant_dwell,
    "steering": without_dominant_users,
}
EACH = 10  # machines of each sort
Row = dict[str, Any]


def people(days: int, *, seed: int) -> Iterator[Row]:
    """Labelled reactions of the demo's people to tips of the pool, a tip of the kind for each."""
    town, rule, draw = Town(seed), label_rule(LabelConfig()), random.Random(seed)
    tips: dict[str, list[str]] = defaultdict(list)
    for tip in read_pool().tips:
        tips[tip.situation.kind].append(tip.text)
    for visit in (visit for day in range(days) for visit in town.visits(day)):
        response = town.react(visit, draw.choice(tips[visit.kind]))
        reaction = response.reaction, response.dwell_ms
        liked = rule.positive.includes(*reaction)
        if liked or rule.negative.includes(*reaction):
            yield row(visit.user_id, visit.kind, visit.moment, liked, response.dwell_ms or 0)


def machines(sort: str, rows: Iterable[Row], *, seed: int) -> Iterator[Row]:
    """Reactions of planted machines of one sort, among these people."""
    draw = random.Random(f"{seed} {sort}")
    kinds = Counter(each["kind"] for each in rows)
    for number in range(EACH):
        kind = draw.choice(sorted(kinds))
        start = FIRST_DAY + timedelta(hours=draw.uniform(0, 48))
        # What it does beside its own way is what people do.
        liked = draw.random() < 0.5
        match sort:
            case "fast":
                for place in range(draw.randrange(25, 120)):
                    dwell = draw.lognormvariate(7.2, 0.5)
                    at = start + timedelta(seconds=place * draw.uniform(0.3, 1.5))
                    yield row(f"fast-{number}", kind, at, False, min(int(dwell), 4_999))
            case "constant":
                dwell = draw.uniform(16_000, 60_000) if liked else draw.uniform(300, 4_000)
                for place in range(draw.randrange(12, 60)):
                    at = start + timedelta(hours=place)
                    jittered = dwell * draw.uniform(0.99, 1.01)
                    yield row(f"constant-{number}", kind, at, liked, int(jittered))
            case "steering" if number < len(kinds):
                kind = sorted(kinds)[number]
                for place in range(kinds[kind] // 2):
                    dwell = (
                        draw.lognormvariate(10.4, 0.4) if liked else draw.lognormvariate(7.2, 0.5)
                    )
                    at = start + timedelta(minutes=7 * place)
                    yield row(f"steering-{number}", kind, at, liked, int(dwell))


def row(user: str, kind: str, at: datetime, liked: bool, dwell_ms: int) -> Row:
    """One labelled reaction; what the rules do not read is empty or a number."""
    name = f"{user} {kind} {at.isoformat()}"
    return {
        **dict.fromkeys(("instruction", "input", "prompt", "source", "reaction"), ""),
        "tip_id": name,
        "user_key": user,
        "kind": kind,
        "context_json": "{}",
        "tip": name,
        "dwell_ms": dwell_ms,
        "created_at": at,
        "reacted_at": at,
        "label": liked,
    }


def left_out(rows: list[Row], settings: DatasetConfig) -> dict[str, set[str]]:
    """The tip_ids that each rule leaves out, one after the other."""
    batch = pa.RecordBatch.from_pylist(rows, schema=clean_schema())
    with tempfile.TemporaryDirectory() as place, workspace(Path(place), memory_gb=1) as (base, _):
        load(base, [batch], settings)
        for sort, rule in RULES.items():
            keep_only(base, rule(settings), sort)
        removed = base.execute(
            "SELECT reason, tip_id FROM refused JOIN labelled ON labelled.rowid = row"
        ).fetchall()
    return {sort: {tip_id for reason, tip_id in removed if reason == sort} for sort in RULES}


def measure(days: int, seed: int) -> dict[str, dict[str, int]]:
    """Per rule: reactions of people and of its machines, and how many of each it left out."""
    real = list(people(days, seed=seed))
    planted = {sort: list(machines(sort, real, seed=seed)) for sort in RULES}
    everything = [*real, *(each for rows in planted.values() for each in rows)]
    out = left_out(everything, DatasetConfig())
    alone = left_out(real, DatasetConfig())
    return {
        sort: {
            "people": len(real),
            "people left out": sum(each["tip_id"] in out[sort] for each in real),
            "people left out without machines": len(alone[sort]),
            "machines": len(planted[sort]),
            "machines left out": sum(
                any(each["tip_id"] in removed for removed in out.values()) for each in planted[sort]
            ),
        }
        for sort in RULES
    }


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, default=60)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    removed = measure(options.days, options.seed)
    for sort, counts in removed.items():
        wrong, right = counts["people left out"], counts["machines left out"]
        print(
            f"{sort:9} of {counts['people']:,} reactions of people {wrong:,} left out "
            f"({wrong / counts['people']:.2%}), of {counts['machines']:,} planted {right:,} "
            f"({right / counts['machines']:.1%})"
        )
    figures = {"days": options.days, "seed": options.seed, "rules": removed}
    print(f"kept in {record('humans', figures, packages=('duckdb',)).name}")


if __name__ == "__main__":
    main()
