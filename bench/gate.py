"""How well the gate foretells what people do, and how often a model that is no better passes.

`bench/gate.py --folder FOLDER` plays the demo once for each seed (`--seeds 1-10`) and keeps what
it made in the folder: an interrupted bench goes on with the next seed. A seed that was recorded on
another day is not played again, unless `--anew`; its entry names the commit it was measured at.
For each seed the bench prints the judge's win rate of the tuned model over the base beside the
audience's own: the mean chance of a positive, without noise, of tips of both for visits that came
after the training.

Null cases are made of each seed's run (`--nulls` of them, also later, of what was kept in the
folder): its held-out people give each other
their labels, judge and likelihood rule are computed anew from the features and scores that were
kept, and nothing is trained; the few-shot base is judged by the base's tips.
`--shuffled N` plays the demo N times with an audience whose reactions say nothing of the tip, and
trains on them.
"""

import argparse
import pickle
import random
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from tqdm import tqdm

from reactune.config.settings import Config, load
from reactune.data.dataset.exports import read_examples
from reactune.demo.audience import Town, Visit
from reactune.demo.loop import run_demo
from reactune.demo.report import policy_value
from reactune.environment import limit_spinning
from reactune.evaluate import gate
from reactune.generation import judge
from reactune.generation.samples import Sample, write_samples
from reactune.model.files import base_model
from reactune.model.prompt import assemble, load_chat, rebuild
from reactune.pipeline import ask_gate, has_reward
from reactune.records import Example
from reactune.reward.cache import reward_rows
from reactune.reward.comparisons import Reactions
from reactune.reward.model import load as load_reward
from reactune.runs.folders import all_runs, prompt_of_run
from record import Cells, commit, record, recorded

FIRST_FRESH_DAY, VISITS = 40, 160
MODELS = ("tuned", "base")
NULLS = ("nulls", "null_passes")


@dataclass(frozen=True)
class Kept:
    """What of one run the null cases are made of."""

    held_out: list[Example]
    scores: dict[str, list[Any]]
    judging: list[Example]
    features: Any
    users: list[str]
    tips: dict[str, list[Any]]


def kept_of(config: Config, run: Path) -> Kept:
    """Scores of the held-out tips, and features of judges' and generated tips."""
    base = base_model(config.model)
    chat = load_chat(base.folder, prompt_of_run(run, config.prompt), privacy=config.privacy)
    examples = read_examples(run / "dataset")
    held_out = gate.sample(examples["test"], limit=config.gate.max_examples)
    rows, kinds = gate.rows_of(chat, held_out), [each.kind for each in held_out]
    shots = gate.few_shot_rows(chat, held_out, examples["train"])
    plain, prompted = gate.score_rows(base, None, [rows, shots], name="base", kinds=kinds)
    adapter = run / "train" / "adapter"
    (tuned,) = gate.score_rows(base, adapter, [rows], name="tuned", kinds=kinds)
    judging = [*examples["validation"], *examples["test"]]
    layers = load_reward(run / "reward").layers
    read = reward_rows(chat, judging)
    contexts = judge.contexts_of(judging)
    asked = [rebuild(chat, each.kind, each.context_json) for each in contexts]
    tips = {}
    for name, each in (("tuned", adapter), ("base", None)):
        samples = write_samples(
            base, each, chat, asked, config.serve, count=judge.TIPS, seed=1, name=name
        )
        tips[name] = judge.features_of_samples(base, chat, asked, samples, layers, name)
    return Kept(
        held_out=held_out,
        scores={"base": plain, "few-shot": prompted, "tuned": tuned},
        judging=judging,
        features=judge.features_of_rows(base, read, layers, "the judges"),
        users=[each.user_key for each in contexts],
        tips=tips,
    )


def permuted(examples: Sequence[Example], *, seed: int) -> list[Example]:
    """Labels of one user given to tips of another: what each user likes at all stays together.

    Permuted within users they would not say nothing: whose tips were good remains.
    """
    draw = random.Random(seed)
    users = defaultdict(list)
    for place, each in enumerate(examples):
        users[each.user_key].append(place)
    receive, give = (draw.sample(list(users.values()), len(users)) for _ in range(2))
    places = [place for some in receive for place in some]
    labels = [examples[p].label for some in give for p in draw.sample(some, len(some))]
    found = list(examples)
    for place, label in zip(places, labels, strict=True):
        found[place] = replace(found[place], label=label)
    return found


def verdict(kept: Kept, config: Config, *, seed: int | None) -> gate.GateReport:
    """The gate's report on the run, with its own labels or with permuted ones."""

    def labelled(some: list[Example]) -> list[Example]:
        return some if seed is None else permuted(some, seed=seed)

    report = gate.examine(gate.held_out(labelled(kept.held_out)), kept.scores, settings=config.gate)
    fitted = judge.fit_judge(Reactions(labelled(kept.judging)), kept.features)
    if fitted is None:
        return report
    one = judge.beside(
        fitted, kept.tips["tuned"], kept.tips["base"], kept.users, alpha=config.gate.alpha / 2
    )
    assert one is not None
    rows = tuple(judge.JudgeRow(model, one, 0.0) for model in ("base", "few-shot"))
    judged = judge.JudgeReport(fitted.accuracy, len(kept.judging), len(kept.users), rows, ())
    return gate.with_judge(report, judged, config.gate)


def fresh_visits(seed: int, first_day: int = FIRST_FRESH_DAY) -> list[Visit]:
    """Visits of an audience that came after the training, in order of time."""
    town = Town(seed)
    visits = [visit for day in range(3) for visit in town.visits(first_day + day)]
    return sorted(random.Random(seed).sample(visits, VISITS), key=lambda visit: visit.moment)


def written(
    config: Config, run: Path, adapter: Path | None, visits: Sequence[Visit], seed: int, name: str
) -> list[tuple[Sample, ...]]:
    """Two tips of a model for each visit, by the run's prompts; fewer where some are unshowable."""
    base = base_model(config.model)
    chat = load_chat(base.folder, prompt_of_run(run, config.prompt), privacy=config.privacy)
    prompts = [assemble(chat, visit.kind, visit.context) for visit in visits]
    return write_samples(base, adapter, chat, prompts, config.serve, count=2, seed=seed, name=name)


def true_rates(config: Config, run: Path, seed: int) -> dict[str, float]:
    """The audience's own rate of positives for one tip of each model, on visits not seen before."""
    visits = fresh_visits(seed)
    found = {}
    for name in MODELS:
        adapter = run / "train" / "adapter" if name == "tuned" else None
        samples = written(config, run, adapter, visits, seed, name)
        shown = [(v, some[0].text) for v, some in zip(visits, samples, strict=True) if some]
        found[name] = policy_value(Town(seed), shown, labels=config.labels).reward
    return found


def played(folder: Path, seed: int, *, tastes: str) -> tuple[Config, Path]:
    """The settings and the run of the demo with this seed, which is played unless it was."""
    config, runs = played_cycles(folder / f"{tastes}-{seed}", seed, tastes=tastes, cycles=1)
    return config, runs[0]


def played_cycles(place: Path, seed: int, *, tastes: str, cycles: int) -> tuple[Config, list[Path]]:
    """The settings and the runs of so many cycles of the demo, played in a folder unless it was."""
    done = place / "played"
    if not done.is_file():
        shutil.rmtree(place, ignore_errors=True)  # the demo of a bench that was interrupted
        run_demo(place, seed=seed, cycles=cycles, tastes=tastes, audience=None, say=print)
        done.touch()
    config = load(place / "reactune.toml", ())
    return config, [run for run in all_runs(config.run_root) if run.name != "base"]


def kept_in(folder: Path, seed: int) -> Path:
    """The file of what the null cases of a seed are made of."""
    return folder / f"kept-{seed}.pkl"


def measured(folder: Path, seed: int) -> dict[str, Any]:
    """The entry of one seed."""
    config, run = played(folder, seed, tastes="default")
    cache = kept_in(folder, seed)
    if not cache.is_file():
        cache.write_bytes(pickle.dumps(kept_of(config, run)))
    own = verdict(pickle.loads(cache.read_bytes()), config, seed=None)
    rows = own.judged.rows if own.judged else ()
    return {
        "seed": seed,
        "passed": not own.refusals,
        "win_rate": asdict(rows[0].beside.win_rate) if rows else None,
        "gain": asdict(rows[0].beside.gain) if rows else None,
        "true": true_rates(config, run, seed),
    }


def null_cases(folder: Path, seed: int, *, earlier: dict[str, int], nulls: int) -> dict[str, int]:
    """How many null cases of one seed pass, with those that were made earlier."""
    config, _ = played(folder, seed, tastes="default")
    kept = pickle.loads(kept_in(folder, seed).read_bytes())
    more = tqdm(range(earlier["nulls"], nulls), desc=f"null cases of seed {seed}")
    passes = sum(not verdict(kept, config, seed=null).refusals for null in more)
    return {"nulls": nulls, "null_passes": earlier["null_passes"] + passes}


def coin_flip(folder: Path, seed: int) -> dict[str, Any]:
    """Whether the gate passes a model that learned from reactions that say nothing of the tip.

    The gate is asked by the code at hand, also where the audience was played by an earlier one.
    """
    config, run = played(folder, seed, tastes="none")
    base = base_model(config.model)
    chat = load_chat(base.folder, prompt_of_run(run, config.prompt), privacy=config.privacy)
    examples, adapters = read_examples(run / "dataset"), {"tuned": run / "train" / "adapter"}
    report = ask_gate(config, run, base, chat, examples, adapters)
    return {"passed": not report.refusals, "has_reward": has_reward(run)}


def upper_bound(passes: int, cases: int) -> float:
    """Clopper and Pearson's upper 95 % bound of a share."""
    return float(stats.beta.ppf(0.975, passes + 1, cases - passes)) if passes < cases else 1.0


def main() -> None:
    """Measure, print and record."""
    limit_spinning()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seeds", default="1-10", help="FIRST-LAST")
    parser.add_argument("--nulls", type=int, default=20, help="of each seed")
    parser.add_argument("--shuffled", type=int, default=0)
    parser.add_argument("--anew", action="store_true", help="measure again what is recorded")
    options = parser.parse_args()
    cells, earlier = Cells(options.folder), [] if options.anew else recorded("gate")
    before = {name: cell for each in earlier for name, cell in each["figures"]["cells"].items()}
    found: dict[str, dict[str, Any]] = {}

    def cell(name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        found[name] = before.get(name) or cells.get(name, lambda: {**measure(), "commit": commit()})
        return found[name]

    first, last = map(int, options.seeds.split("-"))
    entries, nulls = [], []
    for seed in range(first, last + 1):
        entry = cell(f"seed {seed}", lambda seed=seed: measured(options.folder, seed))
        # An earlier form of the entry has some null cases itself.
        made = {name: entry.get(name, 0) for name in NULLS}
        name = f"seed {seed}, {options.nulls} null cases"
        can_make = name in before or kept_in(options.folder, seed).is_file()
        if made["nulls"] < options.nulls and can_make:
            made = cell(
                name,
                lambda seed=seed, made=made: null_cases(
                    options.folder, seed, earlier=made, nulls=options.nulls
                ),
            )
        entries.append(entry)
        nulls.append(made)
        win, true = entry["win_rate"], entry["true"]
        shown = f"{win['value']:.3f} [{win['low']:.3f}, {win['high']:.3f}]" if win else "no judge"
        print(
            f"seed {seed}: gate {'passed' if entry['passed'] else 'refused'}, win rate {shown}; "
            f"true rate {true['base']:.3f} -> {true['tuned']:.3f}; "
            f"{made['null_passes']} of {made['nulls']} null cases passed",
            flush=True,
        )
    cases, passed = (sum(each[name] for each in nulls) for name in NULLS)
    right = [
        (each["win_rate"]["value"] > 0.5) == (each["true"]["tuned"] > each["true"]["base"])
        for each in entries
        if each["win_rate"]
    ]
    bound = upper_bound(passed, cases)
    print(f"null cases: {passed} of {cases} passed, upper 95 % bound {bound:.3f} (goal 0.08)")
    print(f"the judge takes the audience's side in {sum(right)} of {len(right)} seeds")
    trained = []
    for seed in range(1, options.shuffled + 1):
        entry = cell(
            f"coin-flip audience {seed}", lambda seed=seed: coin_flip(options.folder, seed)
        )
        is_passed = entry["passed"]
        trained.append(is_passed)
        print(f"coin-flip audience {seed}: tuned model {'passed' if is_passed else 'refused'}")
    wins = [each["win_rate"]["value"] for each in entries if each["win_rate"]]
    gains = [each["true"]["tuned"] - each["true"]["base"] for each in entries if each["win_rate"]]
    figures = {
        "cells": found,
        "null upper bound": bound,
        "correlation": float(np.corrcoef(wins, gains)[0, 1]) if len(wins) > 2 else None,
        "coin-flip audiences passed": trained,
    }
    print(record("gate", figures, packages=("torch", "scipy")))


if __name__ == "__main__":
    main()
