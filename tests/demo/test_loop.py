"""The demo on another audience with a tiny model; its verdicts where tips make no difference."""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import numpy as np
import pytest
from scipy.stats import beta

from canary_fixtures import outcomes_of
from loop_fixtures import KEY, Letters, write_settings
from reactune import deployment
from reactune.canary.compare import compare, decide
from reactune.canary.routing import route, unit_key
from reactune.config.sections import CanaryConfig, LabelConfig
from reactune.config.settings import load
from reactune.demo.audience import Town
from reactune.demo.loop import (
    Clock,
    Demo,
    has_enough_labels,
    run_demo,
    serve_day,
    set_up,
    unused_folder,
)
from reactune.demo.pool import PooledRuntime, read_pool
from reactune.errors import ConfigError
from reactune.model.files import base_model
from reactune.model.prompt import load_chat
from reactune.privacy.hashing import user_key
from reactune.runs.folders import all_runs
from reactune.runs.manifest import ending
from reactune.service.state import close_service
from reactune.store.database import create_store
from reactune.store.labels import label_rule
from serving_fixtures import ModelServer, service_of, set_champion

TIP = "Take a short walk, then call Anna."


@pytest.fixture(scope="module")
def finished_demo(tmp_path_factory):
    """A demo that ran to its end: its folder, its report, and its output."""
    folder = tmp_path_factory.mktemp("demo")
    file = write_settings(
        folder,
        # Random weights end an answer at one token of 260; one that is cut is not learned from.
        serve={"max_tokens": 96, "threads": 1, "parallel": 4, "timeout_seconds": 120},
        # How a model of random weights ranks is chance, in which loss it ends is not.
        gate={"tolerance": 1.0, "lower_loss_needs_gain": False},
        export={"min_greedy_agreement": 0.0, "max_logprob_gap": 1.0, "min_learned_kept": 0.5},
        canary={
            "share": 0.5,
            "ramp": [],
            "planned_units": 120,
            "max_units": 120,
            "min_days": 0,
            "min_positives": 5,
            "min_negatives": 5,
        },
    )
    before = file.read_text()
    output = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REACTUNE_KEY", "overwritten by the demo's own key")
        report = run_demo(
            folder,
            seed=3,
            cycles=1,
            tastes="default",
            audience="loop_fixtures:Letters",
            say=output.append,
        )
    assert file.read_text() == before
    return folder, report, output


@pytest.mark.slow
def test_the_demo_runs_a_cycle_on_another_audience(finished_demo):
    folder, report, output = finished_demo
    config = load(folder / "reactune.toml")
    assert report == folder / "report.html"
    run = all_runs(config.run_root)[-1]
    assert ending(run).stage == "deploy"
    assert deployment.current(config).challenger is None
    days = [line for line in output if line.startswith("day ")]
    assert days
    assert re.search(r": (promote|roll back)|(promote|roll back):", days[-1])
    assert output[-1] == f"report    {report}"


@pytest.mark.slow
def test_the_report_of_the_demo_is_one_file_and_states_the_verdict(finished_demo):
    _, report, _ = finished_demo
    text = report.read_text(encoding="utf-8")
    for title in (
        "Reactions by arm", "Stage by stage",
        "Did it get better on held-out users?", "The reward: what people like", "Training",
        "Where the time went",
    ):  # fmt: skip
        assert f"<h2>{title}</h2>" in text
    assert "Nothing yet." not in text
    assert text.count("<svg") >= 5
    assert not re.search(r"""(src|href)=["'](?!#)""", text)
    assert "<script" not in text
    verdict = re.search(r'<p class="lead">(.*?)</p>', text, re.S).group(1)
    assert verdict.split(":")[0] in ("promote", "roll back")


@pytest.mark.slow
def test_without_a_cycle_the_audience_only_reacts(tmp_path, monkeypatch):
    write_settings(tmp_path, serve={"max_tokens": 96, "threads": 1, "timeout_seconds": 120})
    monkeypatch.setenv("REACTUNE_KEY", "overwritten by the demo's own key")
    output, people = [], {"tastes": "default", "audience": "loop_fixtures:Letters"}
    folder = run_demo(tmp_path, seed=3, cycles=0, say=output.append, **people)
    config = load(folder / "reactune.toml")
    assert has_enough_labels(config)
    assert re.fullmatch(rf"reactions of \d+ days in {folder}", output[-1])
    assert all_runs(config.run_root) == []
    assert (deployment.current(config).champion, deployment.current(config).challenger) == (1, None)


def test_an_audience_that_cannot_be_constructed_is_refused(tmp_path, monkeypatch):
    write_settings(tmp_path)
    monkeypatch.setenv("REACTUNE_KEY", "overwritten by the demo's own key")
    people = {"tastes": "default", "audience": "loop_fixtures:Nobody"}
    with pytest.raises(ConfigError, match="'loop_fixtures:Nobody' cannot be constructed"):
        run_demo(tmp_path, seed=1, cycles=1, say=print, **people)


def test_a_visit_without_a_showable_tip_is_left_out(tmp_path):
    config = load(write_settings(tmp_path))
    engine = create_store(config.store_url)
    set_champion(engine)
    server = ModelServer({1: lambda prompt, sampling: "Walk." if "7 am" in prompt else "<CARD_1>"})
    clock, people = Clock(), Letters(1)
    chat = load_chat(base_model(config.model).folder, config.prompt)
    service = service_of(engine, chat, server, settings=config.serve, clock=clock.now)
    demo = Demo(config, people, service, PooledRuntime(server, read_pool()), clock, print)
    served = serve_day(demo, 0)
    close_service(service)
    engine.dispose()
    early = [visit for visit in people.visits(0) if visit.context["time_of_day"] == "7 am"]
    assert [one.visit for one in served] == early
    assert {one.text for one in served} == {"Walk."}
    assert people.reacted == [visit.visit_id for visit in early]


SETTINGS = CanaryConfig(
    share=0.5, ramp=(), min_days=0, planned_units=500, min_positives=10, min_negatives=10
)
DAYS, USERS = 8, 60


def verdict_of_chance(seed, *, help_challenger=False):
    """The verdict of a rollout where reactions are coin flips, reviewed after every day.

    A rollout that ends without evidence of harm is "inconclusive". `help_challenger` makes its
    quick dismissals positives, to check that a promotion is possible.
    """
    town = Town(seed, "none", users=USERS)
    rule = label_rule(LabelConfig())
    units = {}
    for day in range(DAYS):
        for visit in town.visits(day):
            key = unit_key(
                "user_day",
                tip_id=visit.visit_id,
                user_key=user_key(KEY, visit.user_id),
                at=visit.moment,
            )
            arm = route(key, salt=f"salt {seed}", share=SETTINGS.share)
            response = town.react(visit, TIP)
            reaction = response.reaction, response.dwell_ms
            liked = rule.positive.includes(*reaction)
            quick = rule.negative.includes(*reaction)
            if help_challenger and arm == "challenger" and quick:
                liked, quick = True, False
            unit = units.setdefault(key, [arm == "challenger", 0, 0, 0])
            unit[1:] = unit[1] + 1, unit[2] + liked, unit[3] + quick
        decision = decide(
            compare(sums_of(units), settings=SETTINGS, planned_units=SETTINGS.planned_units),
            settings=SETTINGS,
            phase="canary",
            age_days=day + 1,
        )
        if decision.verdict != "wait":
            is_given_up = decision.reason.startswith("inconclusive")
            return "inconclusive" if is_given_up else decision.verdict
    return "wait"


def sums_of(units):
    """Sums by unit as `read_outcomes` hands them over."""
    arms, tips, positives, quick = np.array(list(units.values())).T
    return outcomes_of(
        challenger=arms,
        share=SETTINGS.share,
        tips=tips,
        positives=positives,
        quick_dismissals=quick,
    )


def lower_bound(hits, worlds):
    """Clopper-Pearson, one-sided 95 %."""
    return beta.ppf(0.05, hits, worlds - hits + 1) if hits else 0.0


@pytest.mark.slow
@pytest.mark.parametrize("worlds", [1_000])
def test_where_reactions_are_coin_flips_false_verdicts_stay_below_alpha(worlds):
    verdicts = [verdict_of_chance(seed) for seed in range(worlds)]
    assert lower_bound(verdicts.count("promote"), worlds) <= SETTINGS.alpha
    assert lower_bound(verdicts.count("roll back"), worlds) <= SETTINGS.alpha
    # Most rollouts without a difference end as futile, before the last day.
    assert verdicts.count("inconclusive") > worlds / 2


def test_the_same_audience_promotes_a_better_challenger():
    assert verdict_of_chance(1, help_challenger=True) == "promote"


def test_a_folder_in_which_a_demo_was_started_is_not_used_again(tmp_path):
    folder = tmp_path / "demo"
    assert unused_folder(folder) == folder
    for used in (folder, tmp_path / "demo-2"):
        used.mkdir()
        (used / ".started").touch()
    assert unused_folder(folder) == tmp_path / "demo-3"


def test_a_folder_with_settings_only_is_used(tmp_path):
    (tmp_path / "reactune.toml").touch()
    assert unused_folder(tmp_path) == tmp_path


def test_each_thread_of_the_clock_is_at_the_moment_of_its_own_visit():
    clock = Clock()
    first, second = datetime(2026, 3, 2, 8, tzinfo=UTC), datetime(2026, 3, 2, 9, tzinfo=UTC)
    clock.moments.now = first
    with ThreadPoolExecutor(1) as other:
        other.submit(setattr, clock.moments, "now", second).result()
        assert other.submit(clock.now).result() == second
    assert clock.now() == first


def test_a_demo_keeps_the_settings_that_are_there_and_its_key_to_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("REACTUNE_KEY", "another key of the same length..")
    file = write_settings(tmp_path)
    before = file.read_text()
    config = set_up(tmp_path, seed=7)
    assert file.read_text() == before
    assert (config.train.seed, config.dataset.seed) == (7, 7)
    key = tmp_path / "key"
    assert key.stat().st_mode & 0o077 == 0
    assert os.environ["REACTUNE_KEY"] == key.read_text()
    assert (tmp_path / ".started").is_file()


def test_a_new_folder_gets_the_settings_of_the_demo(tmp_path, monkeypatch):
    monkeypatch.setenv("REACTUNE_KEY", "another key of the same length..")
    config = set_up(tmp_path / "new", seed=1)
    assert config.train.method == "auto"
    assert config.canary.planned_units == 3_000
    assert (tmp_path / "new" / "reactune.db").is_file()
