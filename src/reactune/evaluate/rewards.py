"""Rewards of texts by a model that a run learned: for pairs of `evaluate`, and `reactune score`."""

import csv
import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from reactune import deployment
from reactune.config.settings import Config
from reactune.data.readers import (
    HALF_A_CHARACTER,
    SURROGATE,
    Line,
    Refused,
    check_readable,
    kind_of,
    read_whole,
)
from reactune.errors import DataError
from reactune.model.files import BaseModel, base_model
from reactune.model.logprobs import Row
from reactune.model.prompt import Chat, assemble, load_chat, tip_token_ids
from reactune.records import replacing
from reactune.reward.comparisons import Floats
from reactune.reward.features import open_layers, tip_features
from reactune.reward.model import FACTS, RewardModel, load, rewards
from reactune.runs.folders import all_runs, find_run, prompt_of_run
from reactune.runs.manifest import manifests
from reactune.runs.remote import fetch, pull, run_root

ROWS_AT_ONCE = 1_000


@dataclass(frozen=True)
class Scored:
    """A row of a file with its reward and lower bound, or the reason why it has none."""

    number: int
    """Its line in the file, from 1."""
    values: Mapping[str, Any] = field(repr=False)
    refusal: str = ""


def reward_of_run(config: Config, run_id: str) -> RewardModel | None:
    """What the run learned about what people like; None where it learned nothing.

    Raises:
        DataError: there is no such run, or its files are missing or broken.
    """
    if run_id == deployment.BASE_RUN:
        return None
    root = run_root(config)
    pull(root, run_id)
    done = manifests(find_run(root.folder, run_id))
    if "reward" not in done or FACTS not in done["reward"].outputs:
        return None
    fetch(root, run_id, "reward", under="reward.")
    return load(root.folder / run_id / "reward")


def live_or_newest(config: Config) -> str | None:
    """The run with a reward model that `score` uses: the champion's, else the newest, else None.

    Raises:
        DataError: its files are missing or broken.
    """
    champion = deployment.champion(config)
    pull(run_root(config))
    runs = [run.name for run in reversed(all_runs(config.run_root))]
    if champion:
        runs.sort(key=lambda name: name != champion.run_id)
    return next((each for each in runs if reward_of_run(config, each)), None)


@contextmanager
def open_scorer(model: RewardModel, base: BaseModel) -> Iterator[Any]:
    """The layers of the base model that the reward model reads.

    Raises:
        DataError: the reward model was fitted on another base model.
    """
    if model.base_digest != base.digest:
        raise DataError(
            f"the reward model reads a base model of digest {model.base_digest[:12]}, but [model] "
            f"base = {base.name!r} has {base.digest[:12]}; set it back, or run the loop again"
        )
    with open_layers(base.folder, model.layers[-1]) as layers:
        yield layers


def score_texts(
    model: RewardModel,
    layers: Any,
    rows: Sequence[Row],
    *,
    progress: Callable[[int], object] = lambda done: None,
) -> tuple[Floats, Floats]:
    """Reward and lower bound of each row: token ids of a prompt, and of a tip without its end."""
    return rewards(model, tip_features(layers, rows, model.layers, progress=progress))


def score_file(
    config: Config,
    model: RewardModel,
    file: Path,
    *,
    run_id: str,
    progress: Callable[[int], object] = lambda done: None,
) -> Iterator[Scored]:
    """Each row of `{kind, context, text}` with `reward` and `lower_bound`, in the file's order.

    The prompts are those of the run that learned the model.

    Raises:
        DataError: the file cannot be read, or the model is of another base.
    """
    check_readable(file)
    base = base_model(config.model)
    settings = prompt_of_run(config.run_root / run_id, config.prompt)
    chat = load_chat(base.folder, settings, privacy=config.privacy)
    lines = read_whole(file)
    with open_scorer(model, base) as layers:
        while some := list(islice(lines, ROWS_AT_ONCE)):
            checked = [_checked(chat, line) for line in some]
            rows = [row for row in checked if not isinstance(row, str)]
            scores = zip(*score_texts(model, layers, rows, progress=progress), strict=True)
            for line, row in zip(some, checked, strict=True):
                if isinstance(row, str):
                    yield Scored(line.number, line.values, row)
                    continue
                reward, low = next(scores)
                found = {"reward": round(float(reward), 6), "lower_bound": round(float(low), 6)}
                yield Scored(line.number, {**line.values, **found})


def write_scored(rows: Iterable[Mapping[str, Any]], file: Path) -> None:
    """Write rows as JSONL, CSV or Parquet, by the ending of the file's name.

    Raises:
        DataError: the name has another ending.
    """
    kind = kind_of(file)
    with replacing(file) as partial:
        if kind == "parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.Table.from_pylist(list(rows)), partial)
            return
        opened = gzip.open if file.name.lower().endswith(".gz") else open
        with opened(partial, "wt", encoding="utf-8", newline="") as text:
            if kind == "jsonl":
                text.writelines(json_line(row) + "\n" for row in rows)
                return
            plain = [{k: _cell(v) for k, v in row.items()} for row in rows]
            writer = csv.DictWriter(text, list(dict.fromkeys(k for row in plain for k in row)))
            writer.writeheader()
            writer.writerows(plain)


def json_line(row: Mapping[str, Any]) -> str:
    """A row as one line of JSON; a number that JSON does not have is null."""
    text = json.dumps(row, ensure_ascii=False, default=str)
    if "NaN" in text or "Infinity" in text:
        row = json.loads(text, parse_constant=lambda name: None)
        text = json.dumps(row, ensure_ascii=False)
    return text


def fields_of(line: Line, texts: Sequence[str]) -> tuple[Mapping[str, Any], list[str]]:
    """The context of a row, which may be an object or its JSON, and these texts of it.

    Raises:
        Refused: it lacks one of them, or one is not what it should be.
    """
    if line.refusal:
        raise Refused(line.refusal)
    values, names = line.values, ("context", *texts)
    if missing := [name for name in names if name not in values]:
        raise Refused(f"lacks {', '.join(missing)}")
    if SURROGATE.search(json_line(values)):
        raise Refused(HALF_A_CHARACTER)
    for name in texts:
        if not isinstance(values[name], str) or not values[name].strip():
            raise Refused(f"{name} must be a text")
    context = values["context"]
    if isinstance(context, str) or context is None:
        try:
            context = json.loads(context or "{}")
        except (ValueError, RecursionError) as error:
            raise Refused("context is no JSON") from error
    if not isinstance(context, dict):
        raise Refused("context must be an object")
    return context, [values[name] for name in texts]


def _checked(chat: Chat, line: Line) -> Row | str:
    """Token ids of the prompt and the tip of a row, or what is wrong with it."""
    try:
        context, (kind, text) = fields_of(line, ("kind", "text"))
        prompt = assemble(chat, kind, context).token_ids
    except DataError as error:
        return str(error)
    tip = tip_token_ids(chat, text)
    return (prompt, tip) if tip else "text must be a text"


def _cell(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else json_line(value)
