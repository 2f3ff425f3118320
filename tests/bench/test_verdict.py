"""The bench of verdicts: its peers follow their publications, and ours is the released rule."""

import sys

import numpy as np
import pyarrow as pa
import pytest
import tea_tasting as tt
from scipy.stats import norm

from canary_fixtures import outcomes_of
from places import BENCH
from reactune.canary.compare import trajectory
from reactune.config.sections import CanaryConfig


@pytest.fixture(scope="module")
def bench():
    """The modules of the bench: worlds, peers, and the rest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        import verdict
        import verdict_peers
        import verdict_worlds

        yield verdict_worlds, verdict_peers, verdict
        for name in ("verdict", "verdict_arms", "verdict_peers", "verdict_worlds", "record"):
            sys.modules.pop(name, None)


def test_the_group_sequential_bounds_spend_as_lan_and_demets(bench):
    _, peers, _ = bench
    rng = np.random.default_rng(1)
    steps = rng.standard_normal((200_000, 5))
    z = np.cumsum(steps, axis=1) / np.sqrt(np.arange(1, 6))
    stopped = np.logical_or.accumulate(z > peers.LAN_DEMETS, axis=1).mean(axis=0)
    spent = 2 * norm.sf(norm.ppf(1 - 0.0125) / np.sqrt(np.arange(1, 6) / 5))
    assert stopped == pytest.approx(spent, abs=0.001)
    part = np.tile(np.arange(1, 6) / 5, (200_000, 1))
    both = peers.group_sequential(z, part).any(axis=1).mean()
    assert both == pytest.approx(0.05, abs=0.002)


def test_a_group_sequential_design_reads_at_its_looks_alone(bench):
    _, peers, _ = bench
    z, part = np.full((1, 20), 9.0), np.arange(1, 21)[None, :] / 20
    assert np.flatnonzero(peers.group_sequential(z, part)[0]).tolist() == [3, 7, 11, 15, 19]


def test_track_and_stop_needs_its_published_threshold(bench):
    _, peers, _ = bench
    # ln((1 + ln 1000) / 0.05) = 5.063: z^2 / 2 must pass it.
    z = np.array([[3.18, 3.19]])
    assert peers.track_and_stop(z, np.full((1, 2), 1_000)).tolist() == [[False, True]]


def test_growthbooks_own_estimate_is_that_of_tea_tasting(bench):
    worlds, peers, _ = bench
    scene = worlds.SCENES[2]
    drawn = worlds.draw(scene, 0.05, 1, np.random.default_rng(2))
    last = np.array([len(scene.share) - 1])
    estimate, error = peers.ratio_with_cuped(drawn, last)
    table = pa.table({
        "variant": drawn.challenger[0].astype(int),
        "s": drawn.positives[0],
        "n": drawn.tips[0],
        "before_s": drawn.past_positives[0],
        "before_n": drawn.past_tips[0],
    })  # fmt: skip
    metric = tt.RatioOfMeans("s", "n", "before_s", "before_n", use_t=False)
    found = tt.Experiment(m=metric).analyze(table)["m"]
    half = (found.effect_size_ci_upper - found.effect_size_ci_lower) / 2 / norm.ppf(0.975)
    assert estimate[0, 0] == pytest.approx(found.effect_size, abs=0.02 * half)
    assert error[0, 0] == pytest.approx(half, rel=0.01)


def test_what_a_person_did_before_is_counted_without_what_comes_after(bench):
    worlds, _, _ = bench
    person = np.array([[0, 1, 0, 0, 1], [2, 2, 2, 0, 2]])
    values = np.array([[3, 1, 4, 1, 5], [2, 7, 1, 8, 2]])
    assert worlds.sums_before(person, values).tolist() == [[0, 0, 3, 7, 1], [0, 2, 9, 0, 10]]


def test_the_measured_rule_is_the_one_of_the_package(bench):
    worlds, _, verdict = bench
    scene = worlds.SCENES[1]
    planned_units = 15_000
    weight = planned_units * 0.05 * 0.95
    seen = verdict.simulate(scene, scene.lift, 3, weight, np.random.default_rng(3))
    again = worlds.draw(scene, scene.lift, 3, np.random.default_rng(3))
    looks = np.arange(verdict.BATCH - 1, len(scene.share), verdict.BATCH)
    for world in range(3):
        outcomes = outcomes_of(
            challenger=again.challenger[world],
            share=scene.share,
            tips=again.tips[world],
            positives=again.positives[world],
            earlier_tips=again.earlier_tips[world],
            earlier_positives=again.earlier_positives[world],
        )
        path = trajectory(outcomes, settings=CanaryConfig(), planned_units=planned_units)
        ends = {
            "promoted": path.effect.low > 0,
            "worse": path.effect.high < 0,
            "futile": path.effect.is_futile | (path.effect.progress >= 1),
        }
        for name, reached in ends.items():
            here = getattr(seen, name)[world]
            assert here == verdict.first(reached[looks][None, :])[0]


def test_a_cell_with_too_many_false_verdicts_is_found(bench):
    arms = sys.modules["verdict_arms"]
    cell = arms.Cell("rule", 20, 0.5, 0.1, 1)
    results = [arms.Result(cell, verdicts, 4_000, 0.05) for verdicts in (0, 200, 240, 250)]
    assert [each.fails for each in results] == [False, False, False, True]


def test_equal_arms_are_rarely_told_apart_and_unequal_ones_usually(bench, monkeypatch):
    arms = sys.modules["verdict_arms"]
    monkeypatch.setattr(arms, "TIPS", (20, 500))
    monkeypatch.setattr(arms, "SHARES", (0.1,))
    monkeypatch.setattr(arms, "RATES", (0.02, 0.3))
    monkeypatch.setattr(arms, "PER_UNIT", (1,))
    cells = [*arms.compare_cells(), *arms.review_cells()]
    worlds = {True: 20, False: 200}
    found = [arms.simulated(each, worlds[each.rule in arms.GUARDS], 4) for each in cells]
    assert len(found) == 2 * 2 * 2 + 2 * 2 * len(arms.GUARDS)
    assert not any(each.fails for each in found)
    decided = arms.power(400, np.random.default_rng(4))
    assert decided["once"] > 0.9
    assert decided["many, 1,000 planned"] > 0.8


def test_cells_that_are_done_are_not_simulated_again(bench, monkeypatch, tmp_path, capsys):
    arms = sys.modules["verdict_arms"]
    monkeypatch.setattr(arms, "TIPS", (20,))
    monkeypatch.setattr(arms, "SHARES", (0.5,))
    monkeypatch.setattr(arms, "RATES", (0.3,))
    monkeypatch.setattr(arms, "PER_UNIT", (1,))
    file = tmp_path / "deep/cells.jsonl"
    first = arms.run(20, 1, file)
    assert "1 of 7: " in capsys.readouterr().out
    kept = file.read_text(encoding="utf-8").splitlines()
    file.write_text("\n".join(kept[:-1]) + "\n", encoding="utf-8")
    assert arms.run(20, 1, file) == first
    said = capsys.readouterr().out
    assert "7 of 7: " in said
    assert "6 of 7: " not in said
    arms.run(20, 2, file)
    assert "1 of 7: " in capsys.readouterr().out
