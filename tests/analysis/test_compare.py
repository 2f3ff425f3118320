"""`reactune compare FILE`: the arms of any file, and comparisons that are refused."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare, fisher_exact, ttest_ind

from places import SHARED
from reactune.analysis.compare import (
    Options,
    check_ratio,
    check_sequence,
    clustered,
    compare_file,
    contrast,
    independent,
    intervals_of,
    many_multiplier,
    parse_shares,
    rate_bounds,
    rate_bounds_at_any_time,
    report,
)
from reactune.analysis.tables import Columns, read_rows
from reactune.cli import main
from reactune.config.sections import LabelConfig
from reactune.errors import CanaryError, DataError

DATA = SHARED / "data"
UPWORTHY = DATA / "upworthy/arms.parquet"
CAPTIONS = DATA / "caption_contest/policy_ab.jsonl.gz"
LABELS = LabelConfig()
COUNTED = Columns(arm=(), by="test", tips="shown", positives="clicked")


def options(**changes):
    values = {
        "positive": frozenset({"done"}),
        "champion": "",
        "shares": {},
        "looks": "once",
        "alpha": 0.05,
        "srm_alpha": 0.001,
        "planned_units": 5_000,
    }
    return Options(**values | changes)


def lines_in(folder, rows, name="rows.jsonl"):
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def compared(folder, rows, columns, **changes):
    return compare_file(lines_in(folder, rows), columns, options(**changes), LABELS)


def visits(seed, users=300, *, lift=0.2):
    """Rows of users with several tips each, correlated within a user; half under each arm."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        arm = ("champion", "challenger")[user % 2]
        rate = rng.beta(2, 3) + lift * (user % 2)
        for _ in range(rng.integers(1, 6)):
            reaction = "done" if rng.random() < rate else "dismiss"
            rows.append({"arm": arm, "unit": f"p{user}", "reaction": reaction})
    return rows


def test_users_with_several_tips_are_compared_as_in_a_clustered_regression(tmp_path):
    rows = visits(1)
    ((found,),) = [each.contrasts for each in compared(tmp_path, rows, Columns(unit="unit"))]
    good = np.array([float(row["reaction"] == "done") for row in rows])
    arm = np.array([float(row["arm"] == "challenger") for row in rows])
    user = np.array([int(row["unit"][1:]) for row in rows])
    fit = sm.OLS(good, sm.add_constant(arm)).fit(
        cov_type="cluster", cov_kwds={"groups": user, "use_correction": False}
    )
    assert found.estimate == pytest.approx(fit.params[1])
    assert found.error == pytest.approx(fit.bse[1], rel=0.01)
    assert found.finding == "better"


def test_tips_without_a_unit_are_compared_as_in_welchs_test():
    few, many = np.repeat([1.0, 0.0], [30, 170]), np.repeat([1.0, 0.0], [90, 210])
    found = contrast(
        independent("a", 200, 30), independent("b", 300, 90),
        alpha=0.05, looks="once", planned_units=1,
    )  # fmt: skip
    bounds = ttest_ind(many, few, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((bounds.low, bounds.high))


def test_bounds_for_many_readings_are_wider_than_for_one():
    arms = independent("a", 2_000, 600), independent("b", 2_000, 700)
    once, many = (
        contrast(*arms, alpha=0.05, looks=looks, planned_units=4_000) for looks in ("once", "many")
    )
    assert once.finding == "better"
    # 4 (1 - Phi(2.671)) = 0.3 of 5 %, the rest is for readings after the plan; 1.96 for one.
    assert (many.high - many.low) / (once.high - once.low) == pytest.approx(1.363, abs=0.002)


def test_bounds_for_many_readings_fail_as_rarely_as_they_say_before_and_after_the_plan():
    # Sums of normal steps, read 500 times up to five plans: as many worlds as tell 5 % from 6 %.
    rng = np.random.default_rng(3)
    progress = np.arange(1, 501) / 100
    width = np.array([many_multiplier(each, 0.05) for each in progress])
    sums = np.cumsum(rng.standard_normal((10_000, 500)), axis=1)
    z = np.abs(sums) / np.sqrt(np.arange(1, 501))
    wrong = int((z > width).any(axis=1).sum())
    assert binomtest(wrong, 10_000, 0.05, alternative="greater").pvalue > 0.001
    by_plan = int((z > width)[:, :100].any(axis=1).sum())
    assert 0.015 < by_plan / 10_000 < wrong / 10_000


@pytest.mark.parametrize(("planned", "part"), [(1_000, 0.8), (5_000, 0.65)])
def test_500_tips_a_side_at_20_and_30_percent_are_usually_decided_also_if_often_read(planned, part):
    rng = np.random.default_rng(4)
    decided = 0
    for _ in range(300):
        done, new = (np.cumsum(rng.random(500) < rate) for rate in (0.2, 0.3))
        for tips in range(50, 501, 50):
            arms = (
                independent("ab"[n], tips, int(each[tips - 1]))
                for n, each in enumerate((done, new))
            )
            found = contrast(*arms, alpha=0.05, looks="many", planned_units=planned)
            if found.finding != "undecided":
                decided += found.finding == "better"
                break
    assert decided / 300 >= part


@pytest.mark.parametrize("looks", ["once", "many"])
@pytest.mark.parametrize(
    ("champion", "arm"),
    [((20, 0), (20, 4)), ((400, 8), (20, 0)), ((1, 0), (1, 1)), ((5, 5), (5, 0)), ((0, 0), (9, 9))],
)
def test_small_and_extreme_arms_stay_undecided(looks, champion, arm):
    for first, second in ((champion, arm), (arm, champion)):
        found = contrast(
            independent("a", *first), independent("b", *second),
            alpha=0.05, looks=looks, planned_units=5_000,
        )  # fmt: skip
        assert found.finding == "undecided" or set(arm) == {5, 0}
        assert found.low < found.estimate < found.high or found.low == -1 or found.high == 1


@pytest.mark.parametrize("looks", ["once", "many"])
def test_an_arm_without_a_positive_is_worse_where_that_is_certain(looks):
    arms = independent("a", 1_000, 300), independent("b", 1_000, 0)
    found = contrast(*arms, alpha=0.05, looks=looks, planned_units=5_000)
    assert (found.finding, found.arm.variance) == ("worse", 0.0)


@pytest.mark.parametrize(("positives", "tips"), [(0, 20), (4, 20), (20, 20), (3, 400), (0, 1)])
def test_the_exact_bounds_of_a_rate_are_those_of_clopper_and_pearson(positives, tips):
    expected = binomtest(positives, tips).proportion_ci(0.95, method="exact")
    found = rate_bounds(positives, tips, alpha=0.05)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-9)
    least, most = rate_bounds_at_any_time(positives, tips, alpha=0.05)
    assert least <= found[0] <= found[1] <= most


def test_the_bounds_at_any_time_miss_a_rate_as_rarely_as_they_say():
    # Every path of 14 tips: with what chance is the rate ever outside?
    for rate in (0.1, 0.5, 0.8):
        inside = {
            (positives, tips)
            for tips in range(15)
            for positives in range(tips + 1)
            for low, high in [rate_bounds_at_any_time(positives, tips, alpha=0.2)]
            if low <= rate <= high
        }
        alive = {0: 1.0}
        for tips in range(1, 15):
            after = {}
            for positives, chance in alive.items():
                for gain, part in ((1, rate), (0, 1 - rate)):
                    after[positives + gain] = after.get(positives + gain, 0) + chance * part
            alive = {n: chance for n, chance in after.items() if (n, tips) in inside}
        assert 1 - sum(alive.values()) <= 0.2


@pytest.mark.parametrize(("tips", "positives"), [((60, 60), (12, 24)), ((40, 400), (12, 200))])
def test_where_fishers_exact_test_is_undecided_so_are_the_bounds(tips, positives):
    arms = [independent("x", *each) for each in zip(tips, positives, strict=True)]
    table = [[arm.positives, arm.tips - arm.positives] for arm in arms]
    p_values = [fisher_exact(table, alternative=side).pvalue for side in ("less", "greater")]
    found = contrast(*arms, alpha=2.1 * min(p_values), looks="once", planned_units=1)
    assert found.finding == "better"
    found = contrast(*arms, alpha=1.9 * min(p_values), looks="once", planned_units=1)
    assert found.finding == "undecided"


@pytest.mark.parametrize("looks", ["once", "many"])
def test_few_units_of_several_tips_stay_undecided_and_say_what_is_missing(tmp_path, looks):
    rows = [
        {"arm": arm, "unit": f"{arm}{unit}", "reaction": "done" if arm == "a" else "dismiss"}
        for arm in "ab"
        for unit in range(29)
        for _ in range(9)
    ]
    trials = compared(tmp_path, rows, Columns(unit="unit"), looks=looks)
    assert [each.finding for each in trials[0].contrasts] == ["undecided"]
    assert report(trials)[0].endswith("undecided, a has 29 units of equal size, 30 are needed")
    rows = [
        {"arm": arm, "unit": f"{arm}{unit}", "reaction": "done" if unit < 9 else "dismiss"}
        for arm in "ab"
        for unit in range(90)
        for _ in range(9)
    ]
    trials = compared(tmp_path, rows, Columns(unit="unit"), looks=looks)
    assert report(trials)[0].endswith("9 units with a positive in the smaller arm, 10 are needed")


@pytest.mark.parametrize("looks", ["once", "many"])
def test_a_clustered_arm_without_any_positive_is_worse(looks):
    tips = np.full(400, 5.0)
    positives = np.tile([0.0, 3.0], 200)
    arms = clustered("a", tips, positives), clustered("b", tips, np.zeros(400))
    found = contrast(*arms, alpha=0.05, looks=looks, planned_units=800)
    assert (found.finding, found.flaw) == ("worse", "")
    assert found.error == pytest.approx((2 * arms[0].variance) ** 0.5)


def test_arms_without_tips_stay_undecided():
    empty = clustered("b", np.zeros(3), np.zeros(3))
    assert (empty.rate, empty.tips) == (0.0, 0)
    found = contrast(empty, empty, alpha=0.05, looks="once", planned_units=1)
    assert found.finding == "undecided"


def test_the_ratio_of_one_reading_is_a_chi_square():
    counts, shares = {"a": 9_500, "b": 570}, {"a": 0.95, "b": 0.05}
    found = check_ratio(counts, shares, alpha=0.001, looks="once")
    # The value that gbstats gives for these counts.
    assert found.p_value == pytest.approx(0.0023610, abs=1e-6)
    assert found.is_passed
    assert not check_ratio({"a": 1_000, "b": 1_200}, {"a": 1, "b": 1}, alpha=0.001,
                           looks="once").is_passed  # fmt: skip


def test_the_ratio_of_many_readings_rarely_alarms_unlike_a_repeated_chi_square():
    rng = np.random.default_rng(2)
    shares, alarms, naive = {"a": 0.5, "b": 0.5}, 0, 0
    for _ in range(100):
        arms = np.where(rng.random(1_000) < 0.5, "a", "b")
        alarms += not check_sequence(arms.tolist(), shares, alpha=0.05).is_passed
        counts = np.cumsum(arms == "a")[49::50]
        seen = np.stack([counts, np.arange(50, 1_001, 50) - counts], axis=1)
        naive += bool((chisquare(seen, axis=1).pvalue < 0.05).any())
    assert binomtest(alarms, 100, 0.05, alternative="greater").pvalue > 0.01
    assert binomtest(naive, 100, 0.05, alternative="greater").pvalue < 0.01


def test_a_sample_ratio_alarm_is_not_taken_back_by_later_rows(tmp_path):
    rows = [
        {"arm": "ab"[n > 150], "unit": f"u{n}", "reaction": "done", "at": n} for n in range(300)
    ]
    columns = Columns(unit="unit", time="at")
    (many,) = compared(tmp_path, rows, columns, looks="many")
    (once,) = compared(tmp_path, rows, columns, looks="once")
    assert many.refusal.startswith("refused: 151 + 149 do not fit the shares 0.5 : 0.5")
    assert not once.refusal


def test_rows_are_put_in_the_order_of_their_numbers_not_of_their_digits(tmp_path):
    # As texts, all that begin with 1 come before all that begin with 9.
    rows = [
        {"arm": arm, "unit": f"{arm}{n}", "reaction": "done", "at": digit * 10.0**n}
        for arm, digit in (("a", 1), ("b", 9))
        for n in range(150)
    ]
    (found,) = compared(tmp_path, rows, Columns(unit="unit", time="at"), looks="many")
    assert not found.refusal
    in_words = [{**row, "at": f"at {row['at']}"} for row in rows]
    (found,) = compared(tmp_path, in_words, Columns(unit="unit", time="at"), looks="many")
    assert found.refusal


def test_units_that_met_several_arms_are_left_out_and_many_of_them_refuse(tmp_path):
    rows = visits(3)
    few = [{"arm": "challenger", "unit": "p0", "reaction": "done"}]
    (found,) = compared(tmp_path, rows + few, Columns(unit="unit"))
    assert found.notes == ("1 units met several arms and are left out",)
    lots = [{"arm": "challenger", "unit": f"p{2 * n}", "reaction": "done"} for n in range(20)]
    (found,) = compared(tmp_path, rows + lots, Columns(unit="unit"))
    assert found.refusal.startswith("refused: 20 of 300 units met several arms")
    assert found.contrasts == ()


def test_a_test_with_one_arm_is_refused_and_counted_and_the_others_are_compared(tmp_path):
    rows = [
        {"test": "alone", "shown": 100, "clicked": 3},
        {"test": "pair", "shown": 1_000, "clicked": 30},
        {"test": "pair", "shown": 1_010, "clicked": 90},
        {"test": "torn", "shown": 1_000, "clicked": 30},
        {"test": "torn", "shown": 2_000, "clicked": 90},
    ]
    found = compared(tmp_path, rows, COUNTED)
    lines = report(found)
    assert lines[0] == "alone: refused: only the arm row 1; a comparison needs two"
    assert lines[1].startswith("pair: row 2 3.00% of 1,000, row 3 8.91% of 1,010: +5.91 points (")
    assert lines[2].startswith("torn: refused: 1,000 + 2,000 do not fit the shares 0.5 : 0.5 (p = ")
    assert lines[-1] == "3 comparisons: 1 better, 0 worse, 0 undecided, 2 refused"
    assert [name for name, *_ in intervals_of(found)] == ["pair row 3"]


def test_the_champion_may_be_missing_from_one_comparison_but_not_from_all(tmp_path):
    rows = [
        {"test": test, "arm": arm, "shown": 500, "clicked": 50}
        for test, arm in (("1", "old"), ("1", "new"), ("2", "new"), ("2", "other"))
    ]
    columns = Columns(by="test", tips="shown", positives="clicked")
    first, second = compared(tmp_path, rows, columns, champion="old")
    assert [each.champion.name for each in first.contrasts] == ["old"]
    assert second.refusal == "refused: no arm old; there are new, other"
    with pytest.raises(DataError, match="no arm 'gold'; there are new, old, other"):
        compared(tmp_path, rows, columns, champion="gold")


def test_several_arms_share_the_chance_of_an_error(tmp_path):
    rows = [{"test": "1", "shown": 1_000, "clicked": 100 + n} for n in range(3)]
    (three,) = compared(tmp_path, rows, COUNTED)
    (two,) = compared(tmp_path, rows[:2], COUNTED, alpha=0.025)
    assert three.contrasts[0] == two.contrasts[0]


def test_the_label_rules_dwell_times_apply_if_their_column_is_named(tmp_path):
    rows = [
        {"arm": arm, "reaction": "done", "seen": {"ms": ms}}
        for arm in "ab"
        for ms in (14_999, 15_000, 120_000, 120_001, None)
    ]
    file = lines_in(tmp_path, rows)
    for dwell, positives in (("", 10), ("seen.ms", 4)):
        columns = Columns(dwell=dwell)
        read = read_rows(file, columns, positive=frozenset({"done"}), labels=LABELS)
        assert sum(row.positives for row in read) == positives


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        ({"arm": "a"}, Columns(), "no column 'reaction'; `reactune compare --help`"),
        ({"arm": "", "reaction": "done"}, Columns(), "line 1: arm: no arm; remove such rows"),
        ({"arm": "a", "n": -1, "reaction": "done"}, Columns(count="n"), "n = -1 is not a count"),
        ({"arm": "a", "n": "x", "reaction": "done"}, Columns(count="n"), "n = 'x' is not a number"),
        ({"arm": "a", "n": 1, "k": 2}, Columns(tips="n", positives="k"), "2 positives of 1 tips"),
        ({"arm": "a", "u": None, "reaction": "done"}, Columns(unit="u"), "u is empty"),
        (
            {"arm": "a", "d": "long", "reaction": "done"},
            Columns(dwell="d"),
            "d = 'long' is not a number",
        ),
    ],
)
def test_an_invalid_row_is_refused_with_the_value(tmp_path, row, columns, message):
    with pytest.raises(DataError) as caught:
        compared(tmp_path, [row], columns)
    assert message in str(caught.value)


def test_shares_are_given_for_each_arm(tmp_path):
    assert parse_shares(["a=0.95", "b = c=1"]) == {"a": 0.95, "b = c": 1.0}
    for wrong in ("a", "a=0", "=1", "a=half", "a=nan"):
        with pytest.raises(CanaryError, match="write ARM=SHARE"):
            parse_shares([wrong])
    rows = [{"arm": arm, "reaction": "done"} for arm in "ab"]
    with pytest.raises(CanaryError, match="give one above 0 for each of the arms"):
        compared(tmp_path, rows, Columns(), shares={"a": 1.0})


@pytest.mark.parametrize("columns", [Columns(), Columns(unit="u")])
def test_an_empty_file_is_an_error(tmp_path, columns):
    with pytest.raises(DataError, match="no rows to compare"):
        compared(tmp_path, [], columns)


TIPS = st.lists(st.integers(1, 6), min_size=2, max_size=30)


@given(st.integers(2, 400), st.integers(0, 400))
def test_units_of_one_tip_are_independent_tips(tips, positives):
    positives = min(positives, tips)
    reactions = (np.arange(tips) < positives).astype(float)
    one, other = clustered("a", np.ones(tips), reactions), independent("a", tips, positives)
    assert (one.tips, one.positives, one.rate) == (other.tips, other.positives, other.rate)
    assert one.variance == pytest.approx(other.variance)


@given(TIPS, st.integers(0, 2**32 - 1))
def test_swapping_arms_swaps_the_sign_of_the_difference(tips, seed):
    rng = np.random.default_rng(seed)
    shown = np.array(tips, float)
    arms = [clustered(name, shown, rng.binomial(tips, 0.4).astype(float)) for name in "ab"]
    for looks in ("once", "many"):
        one, other = (
            contrast(first, second, alpha=0.05, looks=looks, planned_units=100)
            for first, second in (arms, arms[::-1])
        )
        assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
        assert {"better": "worse", "worse": "better"}.get(one.finding, "undecided") == other.finding


@given(st.integers(1, 500), st.integers(1, 500), st.floats(0.1, 10), st.floats(0.5, 20))
def test_shares_count_in_proportion_only(a, b, share, factor):
    counts = {"a": a, "b": b}
    for looks in ("once", "many"):
        one, other = (
            check_ratio(counts, {"a": share * n, "b": n}, alpha=0.01, looks=looks)
            for n in (1.0, factor)
        )
        assert one.p_value == pytest.approx(other.p_value, rel=1e-6)
        assert sum(one.shares.values()) == pytest.approx(1)


def test_a_p_value_is_never_above_one():
    even = check_ratio({"a": 500, "b": 500}, {"a": 1, "b": 1}, alpha=0.001, looks="many")
    assert even.p_value == 1.0
    assert check_sequence(["a", "b"] * 9, {"a": 1, "b": 1}, alpha=0.001).p_value == 1.0


def test_the_sequence_of_one_reading_agrees_with_the_counts():
    shares = {"a": 0.7, "b": 0.3}
    sequence = check_sequence(["a", "b", "b", "b"] * 90, shares, alpha=0.001)
    counts = check_ratio({"a": 90, "b": 270}, shares, alpha=0.001, looks="many")
    assert sequence.counts == counts.counts == {"a": 90, "b": 270}
    # The largest e-value so far is that of the last unit here.
    assert sequence.p_value == pytest.approx(counts.p_value)
    assert not sequence.is_passed


def test_a_unit_counts_in_the_sequence_by_its_first_row(tmp_path):
    # Three rows of every unit: without units there would be three times as many draws.
    rows = [
        {"arm": "ab"[n % 2], "unit": f"u{n}", "reaction": "done", "at": 1_000 * visit + n}
        for visit in range(3)
        for n in range(60)
    ]
    (trial,) = compared(tmp_path, rows, Columns(unit="unit", time="at"), looks="many")
    assert not trial.refusal
    assert [each.units for each in (trial.contrasts[0].champion, trial.contrasts[0].arm)] == [
        30,
        30,
    ]


def test_the_champion_is_the_arm_of_that_name_or_the_first(tmp_path):
    named = [{"arm": arm, "reaction": "done"} for arm in ("challenger", "champion")]
    (trial,) = compared(tmp_path, named, Columns())
    assert trial.contrasts[0].champion.name == "champion"
    other = [{"arm": arm, "reaction": "done"} for arm in ("b", "a")]
    (trial,) = compared(tmp_path, other, Columns())
    assert trial.contrasts[0].champion.name == "a"


def test_a_long_list_of_arms_is_cut(tmp_path):
    rows = [{"arm": f"arm{n}", "reaction": "done"} for n in range(9)]
    with pytest.raises(DataError, match="there are arm0, arm1, arm2, arm3, arm4 and 4 more"):
        compared(tmp_path, rows, Columns(), champion="none")


@pytest.mark.parametrize(
    ("positive", "reactions"),
    [
        ("true", [True, False]),
        ("1", [1.0, 0]),
        ("done", ["Done", " done", "dismiss"]),
        ("Done", ["done", None]),
        ("1.0", ["1", "0"]),
        ("true", ["t", "f"]),
    ],
)
def test_reactions_are_compared_by_what_they_mean(tmp_path, positive, reactions):
    rows = [{"arm": arm, "reaction": each} for arm in "ab" for each in reactions * 40]
    ((found,),) = [
        trial.contrasts
        for trial in compared(tmp_path, rows, Columns(), positive=frozenset({positive}))
    ]
    wanted = sum(each in (True, 1.0, "Done", " done", "done", "1", "t") for each in reactions)
    assert found.arm.positives == found.champion.positives == 40 * wanted


def test_an_arm_is_found_by_what_its_name_means(tmp_path):
    arms = [0, 0.0, "0", True, "true", "True "]
    rows = [{"arm": arm, "reaction": "done"} for arm in arms * 20]
    ((found,),) = [
        trial.contrasts
        for trial in compared(tmp_path, rows, Columns(), champion="0.0", shares={"TRUE": 1, "0": 1})
    ]
    assert (found.champion.name, found.champion.tips) == ("0", 60)
    assert (found.arm.name, found.arm.tips) == ("true", 60)


def test_a_positive_in_no_row_is_wrong_usage_and_shows_what_there_is(tmp_path, capsys):
    rows = [{"arm": arm, "reaction": each} for arm in "ab" for each in ("liked", "Meh", None)]
    file = lines_in(tmp_path, rows)
    for positive in ((), ("--positive", "liked", "--positive", "like")):
        code, out, err = call(capsys, "compare", file, *positive)
        assert (code, out) == (2, [])
        assert "so nothing would be positive; found: Meh, liked; name what counts with" in err
    assert call(capsys, "compare", file, "--positive", "LIKED")[0] == 0


def test_a_missing_key_is_a_null_and_a_column_without_any_value_an_error(tmp_path, capsys):
    rows = [{"reaction": "done", "arm": arm} for arm in "ab"] + [{"arm": "a"}, {"arm": "b"}]
    ((found,),) = [each.contrasts for each in compared(tmp_path, rows, Columns())]
    assert (found.arm.tips, found.arm.positives) == (2, 1)
    code, _, err = call(capsys, "compare", lines_in(tmp_path, rows), "--arm", "group")
    assert code == 1
    assert "no column 'group'; " in err
    assert "the file has arm, reaction" in err


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return caught.value.code, out.splitlines(), err


@pytest.fixture(autouse=True)
def settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REACTUNE_KEY", "0123456789abcdef0123456789abcdef")
    monkeypatch.delenv("REACTUNE_CONFIG", raising=False)


def test_the_command_prints_and_draws_the_result(tmp_path, capsys):
    file = lines_in(tmp_path, visits(4))
    code, out, _ = call(capsys, "compare", file, "--unit", "unit", "--picture", "seen.svg")
    assert code == 0
    assert out[0].endswith("challenger is better")
    assert "challenger" in (tmp_path / "seen.svg").read_text()
    code, _, err = call(capsys, "compare", file, "--picture", "seen.gif")
    assert code == 1
    assert "its name must end in .svg or .png" in err
    code, _, err = call(capsys, "compare", file, "--rows-are-arms", "--arm", "arm")
    assert code == 2
    assert "--rows-are-arms goes with neither" in err


@pytest.mark.skipif(not UPWORTHY.is_file(), reason="needs shared/data/upworthy")
def test_372_of_2385_real_tests_fail_the_sample_ratio_check_whatever_the_file_says_of_it(tmp_path):
    columns = ["test_id", "impressions", "clicks", "srm_p"]
    table = pq.read_table(UPWORTHY, columns=columns)
    # The column that says how it was is a lie here, and must not be read.
    table = table.set_column(3, "srm_p", pa.array(np.zeros(table.num_rows)))
    file = tmp_path / "arms.parquet"
    pq.write_table(table, file)
    columns = Columns(arm=(), by="test_id", tips="impressions", positives="clicks")
    found = compare_file(file, columns, options(), LABELS)
    refused = {trial.name for trial in found if trial.refusal}
    seen = {}
    for row in table.to_pylist():
        seen.setdefault(row["test_id"], []).append(row["impressions"])
    wanted = {name for name, counts in seen.items() if chisquare(counts).pvalue < 0.001}
    assert (len(found), len(refused)) == (2_385, 372)
    assert refused == wanted
    assert report(found)[-1].endswith(" 372 refused")


@pytest.mark.skipif(not CAPTIONS.is_file(), reason="needs shared/data/caption_contest")
def test_all_five_real_policy_comparisons_are_right(capsys):
    code, out, _ = call(
        capsys, "compare", CAPTIONS, "--by", "context_json.contest", "--champion", "RoundRobin",
        "--positive", "funny", "--positive", "somewhat_funny", "--count", "n",
    )  # fmt: skip
    assert code == 0
    assert [line.partition(":")[0] for line in out[:5]] == ["510", "511", "512", "513", "514"]
    assert all(line.endswith("LilUCB is better") for line in out[:5])
    # The shares that the data's own description gives.
    assert out[0].startswith("510: RoundRobin 8.78% of 41,442, LilUCB 10.07% of 41,185: +1.29")
    assert out[4].startswith("514: RoundRobin 26.38% of 96,408, LilUCB 31.22% of 95,790: +4.84")
    assert out[5].startswith("note: no --unit column: every tip counts")
    assert out[6] == "5 comparisons: 5 better, 0 worse, 0 undecided, 0 refused"
