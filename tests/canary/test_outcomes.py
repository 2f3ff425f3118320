import random
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest

from reactune.canary.outcomes import earlier_by_user, read_outcomes
from reactune.config.sections import CanaryConfig, LabelConfig
from reactune.store.database import writing
from reactune.store.queries import upsert_scores

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(days=1)
LABELS = LabelConfig()
SETTINGS = CanaryConfig()
COLUMNS = (
    "unit_key", "challenger", "share", "tips", "positives", "quick_dismissals", "snoozes", "slow",
    "repeats", "fallbacks", "fell_back", "both_arms", "earlier_tips", "earlier_positives",
)  # fmt: skip


def tip(tip_id, unit="u1", **columns):
    return {
        "tip_id": tip_id,
        "user_key": unit,
        "key_id": "k",
        "kind": "tip",
        "source": "llm",
        "context_json": "{}",
        "tip_content": "Take a walk",
        "arm": "champion",
        "rollout_id": "r1",
        "unit_key": unit,
        "propensity": 0.95,
        "fallback": None,
        "created_at": NOON,
        "shown_at": NOON,
        "reaction": None,
        "dwell_ms": None,
        "answer_ms": 900,
    } | columns


def read(engine, rows=(), *, now=LATER, labels=LABELS, settings=SETTINGS):
    with writing(engine) as connection:
        upsert_scores(connection, list(rows))
    with engine.connect() as connection:
        return read_outcomes(connection, "r1", labels=labels, settings=settings, now=now)


def only(outcomes):
    """The single unit of these outcomes, by name."""
    assert len(outcomes.unit_key) == 1
    return SimpleNamespace(**{name: getattr(outcomes, name)[0].item() for name in COLUMNS})


def test_a_unit_has_the_sums_of_its_tips(engine):
    seen = only(read(engine, [
        tip("a", reaction="done", dwell_ms=20_000),
        tip("b", reaction="dismiss", dwell_ms=900),
        tip("c", reaction="snooze", dwell_ms=4_000),
        tip("d"),
    ]))  # fmt: skip
    assert (seen.tips, seen.positives, seen.quick_dismissals, seen.snoozes) == (4, 1, 1, 1)
    assert not seen.challenger
    assert seen.share == 0.05


@pytest.mark.parametrize(
    ("columns", "positive", "quick"),
    [
        ({"reaction": "done", "dwell_ms": 15_000}, 1, 0),
        ({"reaction": "done", "dwell_ms": 120_000}, 1, 0),
        ({"reaction": "done", "dwell_ms": 14_999}, 0, 0),
        ({"reaction": "done", "dwell_ms": 120_001}, 0, 0),
        ({"reaction": "done", "dwell_ms": 20_000, "source": "rule"}, 0, 0),
        ({"reaction": "done", "dwell_ms": None}, 0, 0),
        ({"reaction": "dismiss", "dwell_ms": 4_999}, 0, 1),
        ({"reaction": "dismiss", "dwell_ms": 5_000}, 0, 0),
        ({"reaction": "dismiss", "dwell_ms": 20_000}, 0, 0),
        ({"reaction": "snooze", "dwell_ms": 20_000}, 0, 0),
        ({"reaction": None, "dwell_ms": None}, 0, 0),
    ],
    ids=str,
)
def test_reactions_count_by_the_label_rule(engine, columns, positive, quick):
    seen = only(read(engine, [tip("a", **columns)]))
    assert (seen.tips, seen.positives, seen.quick_dismissals) == (1, positive, quick)


def test_the_label_rule_is_a_setting(engine):
    labels = LabelConfig(positive_dwell_ms=(6_000, 9_000), negative_dwell_below_ms=1_000)
    rows = [
        tip("a", reaction="done", dwell_ms=7_000),
        tip("b", reaction="done", dwell_ms=20_000),
        tip("c", reaction="dismiss", dwell_ms=2_000),
    ]
    seen = only(read(engine, rows, labels=labels))
    assert (seen.positives, seen.quick_dismissals) == (1, 0)


def test_a_tip_that_was_never_shown_does_not_count(engine):
    rows = [tip("a"), tip("b", shown_at=None, reaction="done", dwell_ms=20_000)]
    assert only(read(engine, rows)).tips == 1


def test_a_tip_counts_from_the_second_its_window_closes(engine):
    quick = tip("a", reaction="dismiss", dwell_ms=500)
    just_before = NOON + timedelta(seconds=179, milliseconds=999)
    assert len(read(engine, [quick], now=just_before).tips) == 0
    assert only(read(engine, now=NOON + timedelta(seconds=180))).quick_dismissals == 1


def test_the_length_of_the_window_is_a_setting(engine):
    settings = CanaryConfig(window_seconds=10)
    early, closed = NOON + timedelta(seconds=9), NOON + timedelta(seconds=10)
    assert len(read(engine, [tip("a")], now=early, settings=settings).tips) == 0
    assert only(read(engine, now=closed, settings=settings)).tips == 1
    assert len(read(engine, now=closed).tips) == 0


def test_earlier_counts_start_from_those_before_the_rollout():
    tips, positives = earlier_by_user(
        ["ann", "bob", "ann", "ann"],
        np.array([1, 2, 3, 4]),
        np.array([0, 1, 2, 3]),
        before={"ann": (5, 2), "cid": (9, 9)},
    )
    assert tips.tolist() == [5, 0, 6, 9]
    assert positives.tolist() == [2, 0, 2, 4]


def test_only_closed_windows_of_a_unit_count(engine):
    rows = [
        tip("a", reaction="done", dwell_ms=20_000),
        tip("b", shown_at=NOON + timedelta(minutes=10), reaction="dismiss", dwell_ms=500),
    ]
    seen = only(read(engine, rows, now=NOON + timedelta(minutes=11)))
    assert (seen.tips, seen.positives, seen.quick_dismissals) == (1, 1, 0)


def test_other_rollouts_and_tips_outside_any_rollout_do_not_count(engine):
    rows = [
        tip("a"),
        tip("b", rollout_id="r0"),
        tip("c", rollout_id=None, arm=None, unit_key=None, propensity=None),
    ]
    assert only(read(engine, rows)).tips == 1


def test_the_share_is_the_challengers_chance_on_both_arms(engine):
    rows = [
        tip("a", "u1", arm="champion", propensity=0.95),
        tip("b", "u2", arm="challenger", propensity=0.05),
    ]
    seen = read(engine, rows)
    assert seen.share.tolist() == [0.05, 0.05]
    assert seen.challenger.tolist() == [False, True]


def test_a_fallback_stays_in_the_arm_it_was_assigned_to(engine):
    rows = [
        tip("a", arm="challenger", propensity=0.05, model_version=1, fallback="timeout",
            reaction="done", dwell_ms=20_000),
        tip("b", arm="challenger", propensity=0.05, model_version=2),
    ]  # fmt: skip
    seen = only(read(engine, rows))
    assert (seen.challenger, seen.tips, seen.positives, seen.fallbacks) == (True, 2, 1, 1)
    assert seen.fell_back


def test_a_unit_that_met_both_arms_stays_whole_in_its_first_and_is_marked(engine):
    rows = [
        tip("b", arm="challenger", propensity=0.1, shown_at=NOON + timedelta(hours=2),
            reaction="done", dwell_ms=20_000),
        tip("a", arm="champion", propensity=0.95),
        tip("c", "u2"),
    ]  # fmt: skip
    seen = read(engine, rows)
    assert seen.both_arms.tolist() == [True, False]
    assert seen.challenger.tolist() == [False, False]
    assert seen.share.tolist() == [0.05, 0.05]
    assert seen.tips.tolist() == [2, 1]
    assert seen.positives.tolist() == [1, 0]


def test_only_a_fallback_of_the_first_tip_counts_as_one_of_the_unit(engine):
    rows = [
        tip("a", arm="challenger", propensity=0.05),
        tip("b", arm="challenger", propensity=0.05, fallback="error"),
    ]
    seen = only(read(engine, rows))
    assert (seen.fallbacks, seen.fell_back) == (1, False)


def test_answers_over_the_limit_are_slow(engine):
    rows = [tip("a", answer_ms=2_000), tip("b", answer_ms=2_001), tip("c", answer_ms=None)]
    assert only(read(engine, rows, settings=CanaryConfig(slow_ms=2_000))).slow == 1


def test_a_tip_repeats_the_one_before_it_of_its_kind_and_arm_whoever_saw_that(engine):
    def at(minute):
        return {"shown_at": NOON + timedelta(minutes=minute)}

    rows = [
        tip("a", "u1", tip_content="Walk", **at(0)),
        tip("b", "u2", tip_content="Walk", arm="challenger", propensity=0.05, **at(1)),
        tip("c", "u3", tip_content="Walk", kind="other", **at(2)),
        tip("d", "u4", tip_content="Walk", **at(3)),
        tip("e", "u5", tip_content="Sing", **at(4)),
        tip("f", "u6", tip_content="Walk", **at(5)),
        tip("g", "u7", tip_content="", **at(6)),
        tip("h", "u8", tip_content="", **at(7)),
    ]
    assert read(engine, rows).repeats.tolist() == [0, 0, 0, 1, 0, 0, 0, 0]


def test_a_unit_counts_what_its_user_was_shown_before_it(engine):
    def day(number):
        return {"shown_at": NOON + timedelta(days=number)}

    done = {"reaction": "done", "dwell_ms": 20_000}
    outside = {"rollout_id": None, "arm": None, "unit_key": None, "propensity": None}
    rows = [
        tip("a", user_key="ann", **outside, **done, **day(-9)),
        tip("b", user_key="ann", rollout_id="r0", **day(-3)),
        tip("c", user_key="ann", source="rule", **outside, **day(-2)),
        tip("d", user_key="ann", shown_at=None, **outside),
        tip("e", "ann:1", user_key="ann", **done, **day(0)),
        tip("f", "ann:1", user_key="ann", **day(0)),
        tip("g", "bob:1", user_key="bob", **day(0)),
        tip("h", "ann:2", user_key="ann", **day(1)),
        tip("i", "ann:3", user_key="ann", **day(2)),
        tip("j", user_key="ann", **outside, **done, **day(1)),
    ]
    seen = read(engine, rows, now=NOON + timedelta(days=9))
    assert seen.unit_key.tolist() == ["ann:1", "bob:1", "ann:2", "ann:3"]
    assert seen.earlier_tips.tolist() == [2, 0, 4, 5]
    assert seen.earlier_positives.tolist() == [1, 0, 2, 2]


def test_tips_are_split_by_kind_too(engine):
    rows = [
        tip("a", "u1", kind="focus", reaction="done", dwell_ms=20_000),
        tip("b", "u1", kind="move"),
        tip("c", "u2", kind="move", reaction="done", dwell_ms=20_000),
        tip("d", "u2", kind="move", shown_at=NOON + timedelta(minutes=1)),
    ]
    kinds = read(engine, rows).kinds
    assert {k: (v.unit.tolist(), v.tips.tolist(), v.positives.tolist()) for k, v in kinds.items()} \
        == {"focus": ([0], [1], [1]), "move": ([0, 1], [1, 2], [0, 1])}  # fmt: skip


def test_units_come_in_the_order_in_which_they_were_first_shown_a_tip(engine):
    rows = [
        tip("1", "Z"),
        tip("2", "a"),
        tip("3", "late", shown_at=NOON + timedelta(microseconds=1)),
        tip("4", "early", shown_at=NOON - timedelta(days=40)),
        tip("5", "late", shown_at=NOON + timedelta(hours=1)),
    ]
    seen = read(engine, rows)
    assert seen.unit_key.tolist() == ["early", "Z", "a", "late"]
    assert seen.first_shown_at[3] == np.datetime64("2026-03-01T12:00:00.000001")


def test_no_exposures_are_empty_outcomes(engine):
    seen = read(engine)
    assert all(len(getattr(seen, name)) == 0 for name in COLUMNS)
    assert seen.kinds == {}


def random_rows(seed, count=600):
    rng = random.Random(seed)
    rows = []
    for n in range(count):
        arm = rng.choice(["champion", "challenger"])
        rows.append(tip(
            f"t{n}",
            f"unit-{rng.randrange(90)}",
            arm=arm,
            propensity=rng.choice([0.5, 0.25]) if arm == "challenger" else 0.75,
            fallback=rng.choice([None, None, "error"]),
            reaction=rng.choice([None, "done", "dismiss", "snooze"]),
            dwell_ms=rng.choice([None, 100, 4_999, 5_000, 15_000, 120_000, 200_000]),
            source=rng.choice(["llm", "llm", "rule"]),
            user_key=f"person-{rng.randrange(9)}",
            tip_content=rng.choice(["Walk", "Sing"]),
            answer_ms=rng.choice([None, 400, 5_001]),
            shown_at=rng.choice([None, NOON + timedelta(seconds=rng.randrange(90_000))]),
        ))  # fmt: skip
    return rows


def sums_by_hand(rows, closed):
    units = defaultdict(list)
    for row in rows:
        if row["shown_at"] is not None and row["shown_at"] <= closed:
            units[row["unit_key"]].append(row)
    for tips in units.values():
        tips.sort(key=lambda row: (row["shown_at"], row["tip_id"]))
    result, last, repeated, past = [], {}, set(), {}
    for row in sorted(chain(*units.values()), key=lambda row: (row["shown_at"], row["tip_id"])):
        if last.get(row["arm"]) == row["tip_content"]:
            repeated.add(row["tip_id"])
        last[row["arm"]] = row["tip_content"]
    for key, tips in sorted(units.items(), key=lambda item: (item[1][0]["shown_at"], item[0])):
        first = tips[0]
        on_challenger = first["arm"] == "challenger"
        dwells = [(row["reaction"], row["dwell_ms"], row["source"]) for row in tips]
        positives = sum(r == "done" and d in (15_000, 120_000) and s == "llm" for r, d, s in dwells)
        earlier = past.setdefault(max(row["user_key"] for row in tips), [0, 0])
        result.append((
            key,
            on_challenger,
            first["propensity"] if on_challenger else 1 - first["propensity"],
            len(tips),
            positives,
            sum(r == "dismiss" and d in (100, 4_999) for r, d, _ in dwells),
            sum(r == "snooze" for r, _, _ in dwells),
            sum(row["answer_ms"] == 5_001 for row in tips),
            sum(row["tip_id"] in repeated for row in tips),
            sum(row["fallback"] is not None for row in tips),
            first["fallback"] is not None,
            len({row["arm"] for row in tips}) == 2,
            *earlier,
        ))  # fmt: skip
        earlier[:] = earlier[0] + len(tips), earlier[1] + positives
    return result


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_sums_are_those_counted_by_hand_in_whatever_order_rows_were_written(engine, seed):
    rows = random_rows(seed)
    shuffled = random.Random(seed + 100).sample(rows, len(rows))
    with writing(engine) as connection:
        for start in range(0, len(shuffled), 97):
            upsert_scores(connection, shuffled[start : start + 97])
    now = NOON + timedelta(hours=20)
    seen = read(engine, now=now)
    found = list(zip(*(getattr(seen, name).tolist() for name in COLUMNS), strict=True))
    assert found == sums_by_hand(rows, now - timedelta(seconds=180))
    assert len(found) > 60
