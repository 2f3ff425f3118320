"""`reactune evaluate`: how often a model ranks the tip that people chose above the other one."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from reactune import deployment
from reactune.config.settings import Config
from reactune.data.dataset.exports import EXAMPLES, read_examples
from reactune.data.readers import Line, Refused, check_readable, read_whole
from reactune.errors import DataError
from reactune.evaluate.gate import score_rows
from reactune.evaluate.rewards import fields_of, open_scorer, reward_of_run, score_texts
from reactune.model.files import base_model
from reactune.model.logprobs import Row
from reactune.model.prompt import Chat, assemble, completion_ids, load_chat
from reactune.progress import progress_bar
from reactune.records import Estimate, folded_text
from reactune.reward.quality import share_won
from reactune.runs.folders import find_run, prompt_of_run
from reactune.runs.manifest import manifests
from reactune.runs.remote import fetch, fetch_adapter, pull, run_root

PAIR = ("kind", "context", "chosen", "rejected")
Floats = npt.NDArray[np.float64]
Read = TypeVar("Read")


@dataclass(frozen=True)
class Pair:
    """A chosen and a rejected tip for one context; pairs of one `cluster` are not independent."""

    kind: str
    context: Mapping[str, Any]
    chosen: str
    rejected: str
    cluster: str


@dataclass(frozen=True)
class BadRow:
    """A row that is no pair: its line in the file, from 1, and why."""

    line: int
    reason: str


@dataclass(frozen=True)
class PairsResult:
    """Preference accuracy of a version's generator, of its reward model, and of what is served."""

    model: str
    pairs: int
    refused: int
    """Pairs with texts that the model was trained on."""
    bad_rows: tuple[BadRow, ...]
    accuracy: Estimate
    """Of the generator by mean log-probability."""
    gain_accuracy: Estimate | None
    """Of the generator by the gain over the base; None: it is the base."""
    reward_accuracy: Estimate | None
    """None: there is no reward model."""
    served_accuracy: Estimate
    """By the reward's lower bound where there is a reward model, else by mean log-probability."""

    @property
    def lines(self) -> tuple[str, ...]:
        """Four lines for the person at the terminal."""
        refused = f", {self.refused:,} refused (in the training data)" if self.refused else ""
        served = "mean log-probability" if self.reward_accuracy is None else "reward's lower bound"
        rows = {
            "generator by mean log-probability": f"{self.accuracy}",
            "generator by gain over the base": f"{self.gain_accuracy or 'none: it is the base'}",
            "reward model": f"{self.reward_accuracy or 'none learned yet'}",
            f"system as served, by {served}": f"{self.served_accuracy}",
        }
        ending = f"; {self.pairs:,} pairs{refused}"
        return tuple(f"{self.model}: {name}: {value}{ending}" for name, value in rows.items())


def evaluate_pairs(config: Config, file: Path, name: str) -> PairsResult:
    """Preference accuracy of `base`, `champion`, `challenger` or a run's model on the pairs.

    Pairs with a text that the model was trained on are refused and counted, rows that are no pairs
    are listed. Pairs of one context depend on each other; the intervals (95 %) say so.

    Raises:
        DataError: the file holds no pair, all are refused, or there is no such model.
    """
    adapter, run_id = _find_model(config, name)
    reward = reward_of_run(config, run_id)
    seen = _trained_texts(config, run_id)
    base = base_model(config.model)
    is_base = run_id == deployment.BASE_RUN
    settings = config.prompt if is_base else prompt_of_run(_run(config, run_id), config.prompt)
    chat = load_chat(base.folder, settings, privacy=config.privacy)

    def tokenised(line: Line) -> tuple[Pair, tuple[Row, Row]]:
        pair = _pair(line)
        return pair, pair_rows(chat, pair)

    pairs, bad_rows = _read(file, tokenised)
    kept = [
        (pair, rows)
        for pair, rows in pairs
        if folded_text(pair.chosen) not in seen and folded_text(pair.rejected) not in seen
    ]
    if not kept:
        raise DataError(
            f"{file}: all {len(pairs):,} pairs hold texts that {name} was trained on; "
            "give pairs that it has not seen"
        )
    fresh, flat = [pair for pair, _ in kept], [row for _, rows in kept for row in rows]
    kinds = [pair.kind for pair in fresh for _ in range(2)]
    clusters = [pair.cluster for pair in fresh]
    (scores,) = score_rows(base, adapter, [flat], name=name, kinds=kinds)
    by_mean = share_won(_wins(np.array([s.mean() for s in scores])), clusters)
    gain = by_reward = None
    if adapter is not None:
        (plain,) = score_rows(base, None, [flat], name="base", kinds=kinds)
        gained = np.array([s.sum() - p.sum() for s, p in zip(scores, plain, strict=True)])
        gain = share_won(_wins(gained), clusters)
    served = by_mean
    if reward is not None:
        tips = [(prompt, completion[:-1]) for prompt, completion in flat]
        with (
            open_scorer(reward, base) as layers,
            progress_bar("score reward", total=len(tips), unit="tip") as bar,
        ):
            rewards, bounds = score_texts(reward, layers, tips, progress=bar.update)
        by_reward, served = (share_won(_wins(each), clusters) for each in (rewards, bounds))
    return PairsResult(
        model=name,
        pairs=len(fresh),
        refused=len(pairs) - len(fresh),
        bad_rows=tuple(bad_rows),
        accuracy=by_mean,
        gain_accuracy=gain,
        reward_accuracy=by_reward,
        served_accuracy=served,
    )


def read_pairs(file: Path) -> list[Pair]:
    """The pairs of a file of `{kind, context, chosen, rejected}`: JSONL (.gz), CSV or Parquet.

    Raises:
        DataError: the file cannot be read, a row is no such pair, or there is none.
    """
    pairs, bad_rows = _read(file, _pair)
    if bad_rows:
        raise _no_pair(file, bad_rows)
    return pairs


def pair_rows(chat: Chat, pair: Pair) -> tuple[Row, Row]:
    """Token ids of both tips of a pair, each after the prompt of its context."""
    prompt = assemble(chat, pair.kind, pair.context).token_ids
    return (prompt, completion_ids(chat, pair.chosen)), (
        prompt,
        completion_ids(chat, pair.rejected),
    )


def _wins(values: Floats) -> Floats:
    """1 where the chosen tip (even places) scores higher than the rejected (odd), 0.5 for a tie."""
    difference = values[0::2] - values[1::2]
    return np.where(difference == 0, 0.5, (difference > 0).astype(np.float64))


def _find_model(config: Config, name: str) -> tuple[Path | None, str]:
    """The adapter of a named model (None: the base as it is) and the run it is from.

    A run that has learned a reward and no adapter yet has the base as its generator.
    """
    if name == "base":
        return None, deployment.BASE_RUN
    if name in ("champion", "challenger"):
        live = deployment.current(config)
        numbers = {"champion": live.champion, "challenger": live.challenger} if live else {}
        number = numbers.get(name)
        if number is None:
            raise DataError(f"there is no {name}; `reactune status` shows what is live")
        model = deployment.version(config, number)
        fetch_adapter(run_root(config), model)
        return model.adapter, model.run_id
    done = manifests(_run(config, name))
    if "train" not in done:
        if "reward" in done:
            return None, name
        raise DataError(f"run {name} has no trained adapter; it did not get that far")
    run = config.run_root / name
    fetch(run_root(config), name, "train", under="adapter/")
    return run / "train" / "adapter", name


def _trained_texts(config: Config, run_id: str) -> frozenset[str]:
    """All texts of the dataset a model was trained on, its held-out parts too."""
    if run_id == deployment.BASE_RUN:
        return frozenset()
    run = _run(config, run_id)
    fetch(run_root(config), run_id, "dataset", under=EXAMPLES)
    parts = read_examples(run / "dataset")
    return frozenset(
        folded_text(example.tip) for examples in parts.values() for example in examples
    )


def _run(config: Config, run_id: str) -> Path:
    """The folder of a run, with the manifests that it has now."""
    pull(run_root(config))
    return find_run(config.run_root, run_id)


def _read(file: Path, read: Callable[[Line], Read]) -> tuple[list[Read], list[BadRow]]:
    """What is read of each row of the file, and the rows that are refused."""
    check_readable(file)
    found, bad_rows = list[Read](), list[BadRow]()
    for line in read_whole(file):
        try:
            found.append(read(line))
        except DataError as error:
            bad_rows.append(BadRow(line.number, str(error)))
    if not found:
        raise _no_pair(file, bad_rows)
    return found, bad_rows


def _pair(line: Line) -> Pair:
    context, (kind, chosen, rejected) = fields_of(line, ("kind", "chosen", "rejected"))
    if chosen == rejected:
        raise Refused("chosen and rejected are the same text")
    return Pair(kind, context, chosen, rejected, json.dumps([kind, context], sort_keys=True))


def _no_pair(file: Path, bad_rows: Sequence[BadRow]) -> DataError:
    wanted = ", ".join(PAIR)
    if not bad_rows:
        return DataError(f"{file} holds no pairs of {wanted}")
    first = bad_rows[0]
    return DataError(f"{file}, line {first.line}: {first.reason}; a pair has {wanted}")
