"""What another policy would have earned: enumerated, against another library, and on a real log."""

import json
from collections import Counter, defaultdict
from dataclasses import asdict
from itertools import combinations_with_replacement, product

import numpy as np
import pyarrow.parquet as pq
import pytest
from estimators.bandits import ips, snips
from scipy.stats import beta

from places import SHARED
from reactune.analysis.offpolicy import (
    Logged,
    Policies,
    Rewards,
    evaluate,
    rank,
    read_choices,
    read_policies,
    read_targets,
    value_bounds,
)
from reactune.cli import main
from reactune.errors import CanaryError, DataError
from reactune.service.choice import Candidate, choose, first_passed

OPEN_BANDIT = SHARED / "data/open_bandit/men.parquet"

# Two circumstances, three actions: chances of both policies, chances of a reward, a wrong guess.
PLACES = np.array([0.3, 0.7])
OLD = np.array([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
NEW = np.array([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1]])
PAYS = np.array([[0.1, 0.4, 0.8], [0.5, 0.2, 0.3]])
GUESS = np.array([[0.9, 0.1, 0.2], [0.3, 0.8, 0.5]])
WORTH = float((PLACES[:, None] * NEW * PAYS).sum())


def logged(place, action, reward, *, guess=GUESS):
    place, action = np.asarray(place), np.asarray(action)
    return Logged(
        reward=np.asarray(reward, float),
        logged_chance=OLD[place, action],
        new_chance=NEW[place, action],
        predicted=guess[place, action],
        expected=(guess * NEW).sum(axis=1)[place],
        max_weight=float((NEW / OLD).max()),
    )


def drawn(rng, answers):
    place = rng.choice(2, answers, p=PLACES)
    action = (rng.random(answers)[:, None] > np.cumsum(OLD, axis=1)[place]).sum(axis=1)
    return logged(place, action, rng.random(answers) < PAYS[place, action])


def test_over_all_logs_of_two_answers_ips_and_dr_are_right_exactly_even_with_a_wrong_guess():
    events = list(product(range(2), range(3), (0, 1)))
    chance = {
        (s, a, r): PLACES[s] * OLD[s, a] * (PAYS[s, a] if r else 1 - PAYS[s, a])
        for s, a, r in events
    }
    mean = {"ips": 0.0, "dr": 0.0, "weight": 0.0, "guess": 0.0}
    for pair in combinations_with_replacement(events, 2):
        found = evaluate(logged(*zip(*pair, strict=True)))
        orders = 1 if pair[0] == pair[1] else 2
        here = orders * chance[pair[0]] * chance[pair[1]]
        mean["ips"] += here * found.ips.value
        mean["dr"] += here * found.dr.value
        mean["weight"] += here * found.mean_weight
        mean["guess"] += here * float(np.mean([(GUESS * NEW).sum(axis=1)[s] for s, _, _ in pair]))
    assert sum(chance.values()) == pytest.approx(1)
    assert mean["ips"] == pytest.approx(WORTH, abs=1e-12)
    assert mean["dr"] == pytest.approx(WORTH, abs=1e-12)
    assert mean["weight"] == pytest.approx(1, abs=1e-12)
    assert abs(mean["guess"] - WORTH) > 0.01


def test_estimates_are_those_of_vw_estimators():
    log = drawn(np.random.default_rng(1), 500)
    found = evaluate(log)
    for estimator, ours in ((ips.Estimator(), found.ips), (snips.Estimator(), found.snips)):
        rows = zip(log.logged_chance, log.reward, log.new_chance, strict=True)
        for p_log, reward, p_new in rows:
            estimator.add_example(p_log=p_log, r=reward, p_pred=p_new)
        assert ours.value == pytest.approx(estimator.get(), abs=1e-9)


def test_standard_errors_are_those_of_many_logs():
    rng = np.random.default_rng(2)
    found = [evaluate(drawn(rng, 300)) for _ in range(40)]
    for name in ("ips", "snips", "dr"):
        values = np.array([getattr(each, name).value for each in found])
        errors = np.mean([getattr(each, name).error for each in found])
        # A standard deviation of 40 values is off by 11 %; three times that is allowed.
        assert values.std(ddof=1) == pytest.approx(errors, rel=0.34)
        assert values.mean() == pytest.approx(WORTH, abs=4 * errors / 40**0.5)


def test_the_effective_sample_size_follows_from_the_weights():
    even = Logged(np.ones(200), np.full(200, 0.5), np.full(200, 0.5))
    assert evaluate(even).effective == pytest.approx(200)
    half = Logged(np.ones(200), np.full(200, 0.5), np.repeat([1.0, 0.0], 100))
    assert evaluate(half).effective == pytest.approx(100)
    lone = Logged(np.ones(200), np.full(200, 0.5), np.repeat([1.0, 0.0], [1, 199]))
    found = evaluate(lone)
    assert found.effective == pytest.approx(1)
    assert found.conclusion == "unknown"
    assert found.reason == "effective sample size 1, 100 needed"


def test_the_bounds_hold_at_all_lengths_of_the_log():
    rng = np.random.default_rng(3)
    missed = 0
    for _ in range(80):
        log = drawn(rng, 250)
        weight = log.new_chance / log.logged_chance
        low, high = value_bounds(log.reward, weight, alpha=0.05, max_weight=log.max_weight)
        # The bounds are the tightest of all lengths, so one reading covers all of them.
        missed += not low <= WORTH <= high
    assert beta.ppf(0.01, missed, 81 - missed) * bool(missed) <= 0.05


def test_bounds_close_in_on_the_value():
    found = evaluate(drawn(np.random.default_rng(4), 5_000))
    assert found.low < WORTH < found.high
    assert found.high - found.low < 0.2
    # What z test and central limit allow after the last answer is no wider than this.
    assert found.high - found.low > 2 * 1.96 * found.ips.error


def test_knowing_the_largest_weight_tightens_the_upper_bound_for_rare_rewards():
    rng = np.random.default_rng(5)
    reward = (rng.random(5_000) < 0.01).astype(float)
    weight = np.where(rng.random(5_000) < 0.5, 1.6, 0.4)
    _, wide = value_bounds(reward, weight, alpha=0.05)
    _, tight = value_bounds(reward, weight, alpha=0.05, max_weight=1.6)
    assert 0.01 < tight < wide / 2


@pytest.mark.parametrize("clip", [0.5, 1.0, 2.0])
def test_clipped_weights_leave_bounds_that_hold_and_are_counted(clip):
    log = drawn(np.random.default_rng(6), 2_000)
    found = evaluate(log, clip=clip)
    assert found.low < WORTH < found.high
    assert found.clipped == np.mean(log.new_chance / log.logged_chance > clip)
    assert found.ips.value < WORTH


def test_a_worse_policy_is_vetoed_and_the_others_are_ranked_by_their_lower_bounds():
    rng = np.random.default_rng(7)
    action = rng.integers(0, 2, 2_000)
    reward = (rng.random(2_000) < np.where(action, 0.6, 0.2)).astype(float)
    half = np.full(2_000, 0.5)
    found = [
        evaluate(Logged(reward, half, np.where(action, chance, 1 - chance), max_weight=2.0))
        for chance in (0.55, 0.0, 0.95)
    ]
    assert [each.conclusion for each in found] == ["allowed", "veto", "allowed"]
    assert rank(found) == [2, 0]


def test_wrong_chances_are_detected():
    log = drawn(np.random.default_rng(8), 2_000)
    wrong = Logged(log.reward, log.logged_chance, np.minimum(log.new_chance * 1.3, 1))
    found = evaluate(wrong)
    assert found.conclusion == "unknown"
    assert "chances are wrong" in found.reason


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": [0.5, 1.5]}, "answer 2: reward = 1.5"),
        ({"logged_chance": [0.0, 0.5]}, "answer 1: logged chance = 0; give values in 0..1, above"),
        ({"new_chance": [0.5, np.nan]}, "answer 2: new chance = nan"),
        ({"max_weight": 0.5}, "a weight is 1, above the largest of 0.5; correct --most-weight"),
    ],
)  # fmt: skip
def test_an_invalid_log_is_refused_with_the_value(changes, message):
    values = {"reward": [0, 1], "logged_chance": [0.5, 0.5], "new_chance": [0.5, 0.5], **changes}
    with pytest.raises(CanaryError) as caught:
        evaluate(Logged(**{n: v if n == "max_weight" else np.array(v) for n, v in values.items()}))
    assert message in str(caught.value)
    with pytest.raises(CanaryError, match="0 logged answers"):
        evaluate(Logged(np.zeros(0), np.zeros(0), np.zeros(0)))


def lines_in(folder, rows):
    file = folder / "log.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_chances_are_counted_in_the_policys_own_rows_and_rewards_predicted_from_earlier_ones(
    tmp_path, capsys, settings
):
    rows = [
        {"who": who, "at": at, "did": did, "reward": reward, "propensity": 0.5}
        for who, at, did, reward in [
            ("old", "x", "a", 2), ("new", "x", "a", 0), ("old", "x", "b", 0), ("new", "x", "b", 2),
            ("old", "x", "a", 2), ("new", "x", "a", 2), ("old", "y", "b", 0), ("new", "x", "a", 0),
        ]
    ]  # fmt: skip
    policies = Policies("who", "old", "new", "did", ("at",))
    file = lines_in(tmp_path, rows)
    log, earned = read_policies(file, policies, Rewards("reward", "propensity", 2))
    assert log.reward.tolist() == [1, 0, 1, 0]
    assert earned.tolist() == [0, 1, 1, 0]
    assert log.new_chance.tolist() == [0.75, 0.25, 0.75, 0]
    assert log.max_weight == 1.5
    # The third answer: a earned 1 of 1, drawn to the average of 1 of 2 with the weight of 20.
    assert log.predicted[2] == pytest.approx((1 + 20 * 0.5) / 21)
    assert log.expected[2] == pytest.approx(0.75 * 11 / 21 + 0.25 * (0 + 20 * 0.5) / 21)
    assert log.predicted[0] == 0
    code, out, _ = call(
        capsys, "ope", file, "--policy", "who", "--from", "old", "--to", "new", "--action", "did",
        "--given", "at", "--largest", "2",
    )  # fmt: skip
    assert code == 3
    assert "new earned 0.50000 of 4 answers in this file" in out


def test_missing_columns_and_policies_are_named(tmp_path):
    file = lines_in(tmp_path, [{"reward": 1, "propensity": 0.5, "new": "x", "who": "old"}])
    of = Rewards("reward", "propensity")
    with pytest.raises(DataError, match="no column 'newer'; `reactune ope --help`"):
        read_targets(file, ["newer"], of)
    with pytest.raises(DataError, match="line 1: new = 'x' is not a number; correct"):
        read_targets(file, ["new"], of)
    with pytest.raises(DataError, match="no rows of policy 'ours'; there are old"):
        read_policies(file, Policies("who", "old", "ours", "new"), of)
    with pytest.raises(DataError, match="no rows to evaluate"):
        read_targets(lines_in(tmp_path, []), ["new"], of)


def test_policies_and_choices_are_compared_by_what_they_mean(tmp_path):
    rows = [
        {"reward": True, "propensity": 0.5, "item": 1, "who": 0},
        {"reward": "false", "propensity": 0.5, "item": 1.0, "who": 0.0},
        {"reward": 1, "item": "1", "who": "New "},
        {"who": "other"},
    ]
    log, earned = read_policies(
        lines_in(tmp_path, rows),
        Policies("who", "0", "new", "item"),
        Rewards("reward", "propensity"),
    )
    assert log.reward.tolist() == [1, 0]
    assert log.new_chance.tolist() == [1, 1]
    assert earned.tolist() == [1]
    with pytest.raises(DataError, match="line 3: propensity = None is not a number; correct"):
        read_policies(
            lines_in(tmp_path, rows), Policies("who", "new", "0", "item"),
            Rewards("reward", "propensity"),
        )  # fmt: skip


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return caught.value.code, out, err


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REACTUNE_KEY", "0123456789abcdef0123456789abcdef")
    monkeypatch.delenv("REACTUNE_CONFIG", raising=False)


def test_the_command_ranks_several_policies_and_reports_small_logs(tmp_path, capsys, settings):
    rng = np.random.default_rng(9)
    rows = [
        {
            "reward": int(did),
            "propensity": 0.5,
            "more": 0.7 if did else 0.3,
            "less": 0.4 + 0.2 * did,
        }
        for did in rng.integers(0, 2, 600).tolist()
    ]
    file = lines_in(tmp_path, rows)
    code, out, _ = call(capsys, "ope", file, "--target", "less", "--target", "more",
                        "--most-weight", "2")  # fmt: skip
    assert code == 0
    assert out.splitlines()[-1] == "ranked by lower bound: more, less"
    code, out, _ = call(capsys, "ope", lines_in(tmp_path, rows[:50]), "--target", "more")
    assert code == 3
    assert "no conclusion: effective sample size" in out
    code, _, err = call(capsys, "ope", file)
    assert code == 2
    assert "name the new policy" in err


def choice_rows(count, *, seed=3):
    """Rows as the service writes them, and what the three ways to choose earn in truth."""
    rng, rows, worth = np.random.default_rng(seed), [], Counter()
    for _ in range(count):
        likes = rng.uniform(0.05, 0.6, 4)
        bounds = 3 * likes + rng.normal(0, 0.4, 4)
        texts = [f"tip {number}" for number in rng.integers(0, 6, 4)]
        likes = np.array([likes[texts.index(text)] for text in texts])  # of a text, wherever
        bounds = np.array([bounds[texts.index(text)] for text in texts])
        candidates = [Candidate(text) for text in texts]
        choice = choose(candidates, bounds, bounds, draw=rng.random())
        liked = rng.random() < likes[choice.chosen]
        rows.append({"done": int(liked), "choice_json": json.dumps(asdict(choice))})
        worth["random"] += likes.mean() / count
        worth["best"] += likes[bounds.argmax()] / count
    return rows, worth


def test_a_log_of_choices_tells_what_the_best_and_a_choice_at_random_would_have_earned(
    tmp_path, capsys, settings
):
    rows, worth = choice_rows(1_500)
    alone = [{"done": 1, "choice_json": value} for value in (None, "")]
    shown = first_passed([Candidate("a"), Candidate("b")], "timeout")
    failed = {"done": 1, "choice_json": json.dumps(asdict(shown))}
    file = lines_in(tmp_path, [*rows, *alone, failed])
    logs, without = read_choices(file, "choice_json", Rewards("done", "none"))
    assert without == 3
    for name, log in logs.items():
        found = evaluate(log)
        assert found.ips.value == pytest.approx(worth[name], abs=4 * found.ips.error)
        assert found.ips.error < 0.04
        assert found.mean_weight == pytest.approx(1, abs=4 * found.mean_weight_error)
        assert found.low < worth[name] < found.high
    code, out, _ = call(capsys, "ope", file, "--reward", "done", "--choice", "choice_json")
    assert code == 0
    assert "3 rows without a choice among several are left out" in out
    assert out.splitlines()[-1].startswith("ranked by lower bound: best, random")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "no row of choice_json holds rewards"),
        ("{", "line 1: choice_json is no choice"),
        ('{"candidates": [], "chosen": 0}', "line 1: choice_json is no choice"),
        ("[1, 2]", "line 1: choice_json is no choice"),
    ],
)
def test_what_is_no_choice_is_refused_with_its_line(tmp_path, value, message):
    file = lines_in(tmp_path, [{"done": 1, "choice_json": value}])
    with pytest.raises(DataError, match=message):
        read_choices(file, "choice_json", Rewards("done", "none"))


@pytest.mark.skipif(not OPEN_BANDIT.is_file(), reason="needs shared/data/open_bandit")
@pytest.mark.parametrize(("old", "new"), [("random", "bts"), ("bts", "random")])
def test_a_real_log_estimates_what_the_other_policy_earned(capsys, settings, old, new):
    policies = Policies("policy", old, new, "item_id", ("position",))
    log, earned = read_policies(OPEN_BANDIT, policies, Rewards("click", "propensity_score"))
    found = evaluate(log)
    truth, error = earned.mean(), earned.std(ddof=1) / len(earned) ** 0.5
    for estimate in (found.ips, found.snips, found.dr):
        assert abs(estimate.value - truth) < 3 * np.hypot(estimate.error, error)
    assert found.low < truth < found.high
    assert found.effective > 100
    # Plainly in Python from the file itself, as a second source.
    table = pq.read_table(
        OPEN_BANDIT, columns=["policy", "item_id", "position", "click", "propensity_score"]
    ).to_pylist()
    did, seen = defaultdict(Counter), Counter()
    for row in table:
        if row["policy"] == new:
            did[row["position"]][row["item_id"]] += 1
            seen[row["position"]] += 1
    total = answers = 0
    for row in table:
        if row["policy"] == old:
            chance = did[row["position"]][row["item_id"]] / seen[row["position"]]
            total += row["click"] * chance / row["propensity_score"]
            answers += 1
    assert found.ips.value == pytest.approx(total / answers, abs=1e-12)
