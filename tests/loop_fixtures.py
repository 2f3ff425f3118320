"""A whole installation in a folder: a tiny real model, people who like some letters and not others.

Everything in it is real (SQLite, MLflow, trainer, llama.cpp); only the model is small enough that a
run takes seconds.
"""

import functools
import json
import os
import random
import shutil
from datetime import UTC, datetime, timedelta
from typing import ClassVar
from unittest import mock

from gguf_fixtures import write_tiny_gguf
from reactune import deployment, pipeline
from reactune.canary.routing import propensity, route, unit_key
from reactune.config.settings import Config, load
from reactune.data.ingest import ingest
from reactune.demo.audience import Response, Visit
from reactune.model.files import base_model
from reactune.model.prompt import load_chat
from reactune.privacy.hashing import HashingKey, user_key
from reactune.release.runtimes import connect
from reactune.service import state
from reactune.store.database import create_store, opened_store, writing
from reactune.store.queries import upsert_scores
from serving_fixtures import report_shown, request_tip
from sharing import made_once

SECRET = "a key for tests that nobody else has"
KEY = HashingKey(SECRET.encode())
START = datetime(2026, 3, 2, 8, tzinfo=UTC)
# Some letters more often than others, so that a greedy answer is no tie.
LIKED, DISLIKED = "aaaaaaaabbbbccd", "wwwwwwwwxxxxyyz"
USERS = 40
SETTINGS = {
    # Tips of random letters are in no language.
    "privacy": {"models": {}},
    "prompt": {
        "system": "Be brief.",
        "instruction": "Tip?",
        "context_keys": ["time_of_day"],
        "cut_order": ["time_of_day"],
        "max_context_tokens": 32,
    },
    "dataset": {
        "min_positives": 40,
        "min_negatives": 40,
        "min_new": 30,
        "split": [0.5, 0.25, 0.25],
    },
    "train": {
        "method": "sft",
        "learning_rate": 0.02,
        "epochs": 4,
        "lora_rank": 4,
        "checkpoint_steps": 4,
        "threads": 1,
    },
    # Five held-out users are too few to be sure of anything at 5 %.
    "gate": {"max_examples": 60, "alpha": 0.3},
    # Random weights: what a rounding changes there says nothing about a trained model.
    "export": {"parity_prompts": 4, "max_logprob_gap": 1.0, "min_greedy_agreement": 0.5},
    "serve": {"max_tokens": 8, "threads": 1, "parallel": 1},
    "canary": {"min_units_per_step": 50, "min_days": 0},
}


@functools.cache
def tiny_base():
    """A model of random weights that reads bytes, and a cache folder for its conversion."""
    folder = made_once("base", lambda made: write_tiny_gguf(made / "tiny.gguf", context=1024))
    return folder / "tiny.gguf", folder / "cache"


def write_settings(folder, **changes):
    """`reactune.toml` for the tiny model; its path. `train={"epochs": 1}` changes a section."""
    base, cache = tiny_base()
    model = {"model": {"base": str(base), "cache_dir": str(cache)}}
    return write_toml(folder, model, SETTINGS, changes)


def write_toml(folder, *parts):
    """`reactune.toml` with the sections of all parts, of which later ones win; its path."""
    sections = {}
    for part in parts:
        for section, values in part.items():
            sections[section] = {**sections.get(section, {}), **values}
    lines = []
    for section, values in sections.items():
        lines += [f"[{section}]", *(f"{key} = {json.dumps(each)}" for key, each in values.items())]
    file = folder / "reactune.toml"
    file.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return file


def install(folder, **changes):
    """Settings and an empty store in a folder; the settings."""
    config = load(write_settings(folder, **changes))
    create_store(config.store_url).dispose()
    return config


def reactions(count, *, first=0, day=0, liked=None):
    """Rows to ingest: tips of two alphabets; the first is done, the other dismissed."""
    rows = []
    for number in range(first, first + count):
        draw = random.Random(number)
        is_liked = number % 2 == 0 if liked is None else liked
        letters = LIKED if is_liked else DISLIKED
        words = ("".join(draw.choices(letters, k=draw.randint(3, 5))) for _ in range(5))
        at = START + timedelta(days=day, minutes=number)
        rows.append(
            {
                "tip_id": f"tip-{number}",
                "user_id": f"user-{number // 2 % USERS}",
                "kind": "focus",
                "source": "llm",
                "context_json": json.dumps({"time_of_day": draw.choice(["morning", "night"])}),
                "tip_content": " ".join(words),
                "created_at": at.isoformat(),
                "shown_at": at.isoformat(),
                "reaction": "done" if is_liked else "dismiss",
                "dwell_ms": 30_000 if is_liked else 1_000,
            }
        )
    return rows


def read_rows(config, rows, *, key, old_keys=()):
    """Read rows into the store as `reactune ingest` does; the file itself goes again."""
    file = config.folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with opened_store(config.store_url) as engine:
        counts = ingest(
            engine,
            [file],
            settings=config.ingest,
            key=key,
            old_keys=old_keys,
            rejects=config.folder / "rejects.jsonl",
        )
    file.unlink()
    return counts


def take_in(config, rows):
    """`read_rows` under the key of these tests; every row is taken."""
    counts = read_rows(config, rows, key=KEY)
    assert counts.went_out == len(rows), counts
    return counts


class Recording(Config):
    """Settings that record which of their sections were read."""

    sections: ClassVar[set[str]] = set()

    def __getattribute__(self, name):
        if name in Config.model_fields and name != "folder":
            Recording.sections.add(name)
        return super().__getattribute__(name)


@functools.cache
def trained():
    """A folder in which one run went through, what it said, and the settings that stages read.

    Copy the folder, never change it.
    """
    folder = made_once("trained", _train)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    read = {stage: set(sections) for stage, sections in report["read"].items()}
    return folder / "installation", tuple(report["said"]), read


def _train(made):
    folder = made / "installation"
    folder.mkdir()
    take_in(install(folder), reactions(200))
    config = Recording(**dict(load(folder / "reactune.toml")))
    said, read = [], {}

    def note(line):
        said.append(line)
        read[line.split()[0]] = sorted(Recording.sections)
        Recording.sections.clear()

    with mock.patch.dict(os.environ, {config.privacy.key_env: SECRET}):
        pipeline.run(config, say=note)
    report = json.dumps({"said": said, "read": read})
    (made / "report.json").write_text(report, encoding="utf-8")


def copy_of_trained(folder, **changes):
    """A copy of the trained installation, with other settings if some are given; its settings."""
    shutil.copytree(trained()[0], folder, dirs_exist_ok=True)
    return load(write_settings(folder, **changes))


def serve_tips(config, *, count=12):
    """Texts that the service shows, and the (arm, version, fallback) of the rollout's rows."""
    with opened_store(config.store_url) as engine:
        service = state.open_service(
            engine,
            chat=load_chat(base_model(config.model).folder, config.prompt),
            runtime=connect(config.serve),
            key=KEY,
            settings=config.serve,
            draw=random.Random(5).getrandbits,
        )
        try:
            shown = []
            for number in range(count):
                context = {"time_of_day": "night"}
                tip = request_tip(service, user_id=f"user-{number}", kind="focus", context=context)
                report_shown(service, tip.tip_id)
                shown.append(tip.content)
        finally:
            state.close_service(service)
        with engine.connect() as connection:
            rows = connection.exec_driver_sql(
                "SELECT arm, model_version, fallback FROM tip_scores WHERE rollout_id IS NOT NULL"
            ).all()
    return shown, {tuple(row) for row in rows}


def expose(config, units, *, champion, challenger, first=0):
    """Write exposures of the open rollout: `units` people on one day, who like tips at two rates.

    People are routed as the service does it, and the moment after which all count is returned.
    """
    opened = deployment.current(config)
    at = opened.opened_at + timedelta(minutes=first)
    rows = []
    for number in range(first, first + units):
        who = user_key(KEY, f"visitor-{number}")
        tip_id = f"shown-{opened.rollout_id}-{number}"
        unit = unit_key(opened.unit, tip_id=tip_id, user_key=who, at=at)
        arm = route(unit, salt=opened.salt, share=opened.share)
        rate = challenger if arm == "challenger" else champion
        is_liked = random.Random(f"{number} likes").random() < rate
        shown = at + timedelta(seconds=number)
        rows.append(
            {
                "tip_id": tip_id,
                "user_key": who,
                "key_id": KEY.key_id,
                "kind": "focus",
                "source": "llm",
                "context_json": "{}",
                "tip_content": f"tip {number}",
                "model_version": opened.challenger if arm == "challenger" else opened.champion,
                "arm": arm,
                "rollout_id": opened.rollout_id,
                "unit_key": unit,
                "propensity": propensity(arm, opened.share),
                "created_at": shown,
                "shown_at": shown,
                "reaction": "done" if is_liked else "dismiss",
                "dwell_ms": 30_000,
                "reacted_at": shown,
            }
        )
    with opened_store(config.store_url) as engine, writing(engine) as connection:
        upsert_scores(connection, rows)
    return shown + timedelta(hours=1)


class Letters:
    """A foreign audience: people who like tips whose letters come early in the alphabet."""

    def __init__(self, seed, tastes="default"):
        self.seed = seed
        self.reacted = []

    def visits(self, day):
        return tuple(
            Visit(
                visit_id=f"{day}-{number}",
                user_id=f"reader-{number}",
                kind="focus",
                context={"time_of_day": f"{7 + number % 3} am"},
                moment=START + timedelta(days=day, minutes=number),
            )
            for number in range(40)
        )

    def react(self, visit, tip):
        self.reacted.append(visit.visit_id)
        letters = [letter for letter in tip.lower() if letter.isalpha() and letter.isascii()]
        early = sum(letter < "n" for letter in letters)
        if 2 * early > len(letters):
            return Response("done", 30_000)
        return Response("dismiss", 1_000)
