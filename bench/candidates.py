"""Time of a tip with four candidates and a reward, beside one candidate, in alternating requests.

The service on the demo's settings and situations, the base model of the demo as Q8_0 on the
embedded llama.cpp, and a reward of random weights on the layers that rewards read: what a reward
says costs the same time whatever its weights are. Each situation is asked for once by each service,
in an order that is drawn. Beside the whole, the time for writing and that for rewards is printed.
"""

import argparse
import asyncio
import random
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from reactune import deployment
from reactune.canary import rollout
from reactune.config.settings import CONFIG_NAME, Config, load
from reactune.demo.situations import demo_settings, situations
from reactune.model.files import base_model
from reactune.model.prompt import load_chat
from reactune.privacy.hashing import HashingKey
from reactune.records import ModelVersion
from reactune.release.llamacpp import LlamaCpp
from reactune.reward.features import layers_of, reward_layers
from reactune.reward.graph import write_graph
from reactune.reward.model import RewardModel, save
from reactune.service import state
from reactune.service.tips import TipRequest, UnshowableTipError, create_tip
from reactune.store.database import create_store, writing
from reactune.store.queries import add_model_version
from record import record

SEED = 11


@dataclass(frozen=True)
class Times:
    """Seconds of each tip, and how many of the tips were chosen by a reward."""

    seconds: Sequence[float]
    rewarded: int
    writing: Sequence[float]
    """Seconds of each call of the model server."""
    rewarding: Sequence[float]

    @property
    def p50(self) -> float:
        """The median."""
        return float(np.percentile(self.seconds, 50))

    @property
    def p99(self) -> float:
        """The 99th percentile."""
        return float(np.percentile(self.seconds, 99))


def export_with_reward(config: Config, folder: Path) -> ModelVersion:
    """The base model as every version is exported, with a reward of random weights."""
    base = base_model(config.model)
    layers = reward_layers(layers_of(base.folder))
    reward = folder / "reward"
    write_graph(base.folder, layers, reward)
    shape = (6, len(layers) * _width(base.folder))
    weights = np.random.default_rng(SEED).normal(size=shape).astype(np.float32)
    save(RewardModel(weights, np.zeros(6, np.float32), layers, base.digest), reward)
    return replace(deployment.export_base_model(config, base), version=1, reward=reward)


def _width(folder: Path) -> int:
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(folder).get_text_config().hidden_size)


def open_services(
    config: Config, model: ModelVersion, counts: Sequence[int], folder: Path
) -> dict[int, state.Service]:
    """A service for each number of candidates, each with a store and a model server of its own."""
    services = {}
    chat = load_chat(base_model(config.model).folder, config.prompt, privacy=config.privacy)
    for count in counts:
        settings = config.serve.model_copy(update={"candidates": count, "parallel": max(counts)})
        engine = create_store(f"sqlite:///{folder / f'{count}.db'}")
        with writing(engine) as connection:
            add_model_version(connection, model, datetime.now(UTC))
        rollout.bootstrap_champion(engine, 1, settings=config.canary, now=datetime.now(UTC))
        services[count] = state.open_service(
            engine,
            chat=chat,
            runtime=LlamaCpp(settings),
            key=HashingKey(b"a key of the benchmark"),
            settings=settings,
        )
        services[count].watcher.refresh()
    return services


def timed(call: Callable[..., Awaitable[Any]], seconds: list[float]) -> Callable[..., Any]:
    """The call, which adds its seconds to a list."""

    async def inner(*arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        found = await call(*arguments, **named)
        seconds.append(time.perf_counter() - started)
        return found

    return inner


async def measure(
    config: Config, services: dict[int, state.Service], tips: int
) -> dict[int, Times]:
    """Ask each service for a tip in every situation, one request at a time."""
    draw = random.Random(SEED)
    seconds: dict[int, list[float]] = {count: [] for count in services}
    chosen = dict.fromkeys(services, 0)

    def count_choices(count: int) -> Any:
        def listen(exposure: Any) -> None:
            chosen[count] += exposure.choice_chance is not None and '"problem":null' in (
                exposure.choice_json or ""
            )

        return listen

    writing: dict[int, list[float]] = {count: [] for count in services}
    rewarding: dict[int, list[float]] = {count: [] for count in services}
    for count, service in services.items():
        service.listeners.append(count_choices(count))
        service.runtime.write = timed(service.runtime.write, writing[count])
        service.rewards.of = timed(service.rewards.of, rewarding[count])
    for number, each in enumerate(situations(tips + 5, seed=SEED)):
        order = list(services)
        draw.shuffle(order)
        for count in order:
            request = TipRequest(f"person {number}", each.kind, each.context)
            started = time.perf_counter()
            try:
                await create_tip(services[count], request)
            except UnshowableTipError:
                continue
            if number >= 5:  # the first ones fill caches
                seconds[count].append(time.perf_counter() - started)
    for service in services.values():
        await service.runtime.end_writing()
    return {
        count: Times(seconds[count], chosen[count], writing[count], rewarding[count])
        for count in services
    }


def median_ms(seconds: Sequence[float]) -> int:
    """The median in milliseconds; 0 of none."""
    return round(1000 * float(np.median(seconds))) if seconds else 0


def main() -> None:
    """Measure, print both lines and their ratios, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tips", type=int, default=150)
    parser.add_argument("--candidates", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / CONFIG_NAME).write_text(demo_settings(), encoding="utf-8")
        config = load(folder / CONFIG_NAME)
        model = export_with_reward(config, folder)
        services = open_services(config, model, (1, options.candidates), folder)
        try:
            times = asyncio.run(measure(config, services, options.tips))
        finally:
            for service in services.values():
                state.close_service(service)
    for count, found in times.items():
        writing, rewarding = median_ms(found.writing), median_ms(found.rewarding)
        print(
            f"{count} candidate(s): p50 {1000 * found.p50:,.0f} ms, p99 {1000 * found.p99:,.0f} ms "
            f"({len(found.seconds)} tips, {found.rewarded} chosen by the reward); "
            f"p50 of writing {writing:,} ms, of rewards {rewarding:,} ms"
        )
    one, many = times[1], times[options.candidates]
    ratios = {"p50": many.p50 / one.p50, "p99": many.p99 / one.p99}
    print(f"ratio: p50 {ratios['p50']:.2f}, p99 {ratios['p99']:.2f} (goal: at most 2)")
    figures = {
        "tips": options.tips,
        "candidates": options.candidates,
        "ratios": {name: round(value, 3) for name, value in ratios.items()},
        "writing_ms": {count: median_ms(found.writing) for count, found in times.items()},
        "rewards_ms": median_ms(many.rewarding),
        "one_ms": [round(1000 * each, 1) for each in one.seconds],
        "many_ms": [round(1000 * each, 1) for each in many.seconds],
    }
    print(record("candidates", figures, packages=("xllamacpp", "onnxruntime", "numpy")))


if __name__ == "__main__":
    main()
