"""What the service adds to a model's answer, and how many reactions a second it puts on disk.

    python bench/service.py --litellm LITELLM_ENV/bin/litellm --tensorzero TENSORZERO_ENV/bin/python

The model server is a stub that answers after a fixed delay. Ours records every tip, on SQLite and
on PostgreSQL; the LiteLLM proxy stands beside it on the same cores, with its logging off, because
that needs downloads, and so does TensorZero's embedded gateway, which is a library in the load
generator's process. All are asked at half of LiteLLM's saturation, at the same random times and
in turns, so that a machine that others use hits them alike; reactions come last. The processor
time of our processes for one tip and one reaction is kept, too: others change that less. On
PostgreSQL the service runs once as one process and once as two workers.
"""

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import sqlalchemy as sa

from load import Answers, at_rate, chat_request, flood
from reactune.config.sections import ModelConfig, PromptConfig
from reactune.model.files import base_model
from reactune.model.prompt import load_chat, write_prompt_folder
from reactune.service.api_keys import make_key
from reactune.store.database import create_store
from reactune.store.schema import tip_scores
from record import record

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from server_fixtures import answers, free_port, make_cluster, running_postgres, wait_until
from serving_fixtures import set_challenger, set_champion, version

USERS = [f"user-{number}" for number in range(500)]
TWO_WORKERS = "two workers"
GOAL_ADDED_MS = 8.0
GOAL_REACTIONS = {"sqlite": 4_000, "postgresql": 3_000, TWO_WORKERS: 3_000}
START_SECONDS, FLOOD_SECONDS = 180, 15.0

Ask = Callable[[float, float, int], Answers]
"""Of a rate, seconds and a seed: the answers to requests at the random times of that seed."""


class Place(NamedTuple):
    """Where a request goes, and what it carries."""

    address: str
    headers: str = ""

    def ask(self, rate: float, seconds: float, seed: int) -> Answers:
        """Requests at random times, so many a second, whether or not earlier ones are answered."""
        request = chat_request(USERS)
        return asyncio.run(
            at_rate(
                self.address,
                request,
                rate=rate,
                seconds=seconds,
                seed=seed,
                headers=self.headers,
            )
        )

    def press(self, connections: int, seconds: float) -> Answers:
        """As many requests as are answered."""
        request = chat_request(USERS)
        return asyncio.run(
            flood(
                self.address, request,
                connections=connections, seconds=seconds, headers=self.headers,
            )
        )  # fmt: skip


class Ours(NamedTuple):
    """Our service on one database."""

    place: Place
    engine: sa.Engine
    process: psutil.Process

    @property
    def cpu_seconds(self) -> float:
        """Processor time that the process and its workers have taken."""
        workers = self.process.children(recursive=True)
        taken = [each.cpu_times() for each in (self.process, *workers)]
        return float(sum(each.user + each.system for each in taken))

    def ask(self, rate: float, seconds: float, seed: int) -> Answers:
        """As `Place.ask`, and the answers hold the processor time."""
        before = self.cpu_seconds
        answers = self.place.ask(rate, seconds, seed)
        answers.cpu_seconds = self.cpu_seconds - before
        return answers


def main() -> None:
    """Measure all by turns; print ours beside theirs, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--litellm", type=Path, help="the program of LiteLLM's own environment")
    parser.add_argument("--tensorzero", type=Path, help="the Python of TensorZero's environment")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--delay-ms", type=float, default=50.0)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--rate", type=float, help="requests a second, where there is no LiteLLM")
    options = parser.parse_args()
    if options.litellm is None and options.rate is None:
        parser.error("give --litellm, or a --rate to measure ours alone at")
    figures: dict[str, Any] = {
        "load before": psutil.getloadavg()[0], "seconds": options.seconds,
        "turns": options.turns, "delay_ms": options.delay_ms, "litellm logging": "off",
    }  # fmt: skip
    with ExitStack() as stack:
        folder, model = Path(stack.enter_context(tempfile.TemporaryDirectory())), free_port()
        stub = [sys.executable, str(Path(__file__).parent / "model_stub.py"), "--port", str(model)]
        stub += ["--delay-ms", str(options.delay_ms)]
        stack.enter_context(running(stub, f"http://127.0.0.1:{model}/api/tags", folder))
        asks: dict[str, Ask] = {"stub alone": Place(f"http://127.0.0.1:{model}").ask}
        rate = options.rate or 0.0
        if options.litellm is not None:
            proxy = stack.enter_context(litellm(options.litellm, folder, model))
            proxy.press(8, 3.0)
            full = proxy.press(options.connections, FLOOD_SECONDS).per_second
            figures["litellm saturation"], rate = full, full / 2
            asks["LiteLLM"] = proxy.ask
            print(f"LiteLLM's saturation: {full:.0f} a second; asked at {rate:.0f}")
        if options.tensorzero is not None:
            asks["TensorZero"] = partial(through_tensorzero, options.tensorzero, model)
        ours: dict[str, Ours] = {}
        for kind, url in stack.enter_context(store_urls(folder)).items():
            (folder / kind).mkdir()
            workers = 2 if kind == TWO_WORKERS else 1
            ours[kind] = stack.enter_context(serving(url, folder / kind, model, workers=workers))
            ours[kind].place.press(8, 3.0)
            asks[f"ours, {kind}"] = ours[kind].ask
        there = {kind: {tip_id for tip_id, *_ in rows(our.engine)} for kind, our in ours.items()}
        found = by_turns(asks, rate, options)
        for name, answers in found.items():
            figures[name] = print_latencies(name, answers, options)
        for kind, our in ours.items():
            name = f"ours, {kind}"
            figures[name] |= recorded(our, found[name], there[kind], options)
            print_verdict(name, kind, figures)
    print(f"load of the machine: {figures['load before']:.1f} before, on {os.cpu_count()} cores")
    print(f"kept in {record('service', figures, packages=('fastapi', 'uvicorn')).name}")


def by_turns(asks: dict[str, Ask], rate: float, options: argparse.Namespace) -> dict[str, Answers]:
    """Everybody's answers at one rate."""
    found = {name: Answers() for name in asks}
    for turn in range(options.turns):
        for name, ask in asks.items():
            found[name].add(ask(rate, options.seconds, turn))
    return found


@contextlib.contextmanager
def litellm(program: Path, folder: Path, model: int) -> Iterator[Place]:
    """The proxy in front of the stub, once it answers."""
    port, settings = free_port(), folder / "litellm.yaml"
    parameters = {
        "model": "openai/stub",
        "api_base": f"http://127.0.0.1:{model}/v1",
        "api_key": "x",
    }
    listed = [{"model_name": "stub", "litellm_params": parameters}]
    settings.write_text(
        json.dumps({"model_list": listed, "litellm_settings": {"telemetry": False}})
    )
    command = [str(program), "--config", str(settings), "--port", str(port)]
    address, key = f"http://127.0.0.1:{port}", f"sk-{secrets.token_hex(32)}"
    command += ["--host", "127.0.0.1"]
    with running(command, f"{address}/health/liveliness", folder, LITELLM_MASTER_KEY=key):
        yield Place(address, bearer(key))


def through_tensorzero(python: Path, model: int, rate: float, seconds: float, seed: int) -> Answers:
    """The same rate through a gateway that is a library and writes nothing down."""
    peer = [str(python), str(Path(__file__).parent / "tensorzero_peer.py")]
    peer += ["--address", f"http://127.0.0.1:{model}"]
    peer += ["--rate", str(rate), "--seconds", str(seconds), "--seed", str(seed)]
    output = subprocess.run(peer, check=True, capture_output=True, text=True).stdout
    taken = json.loads(output.splitlines()[-1])
    return Answers(taken, [200] * len(taken), wall_seconds=seconds)


def recorded(
    ours: Ours, answers: Answers, before: set[str], options: argparse.Namespace
) -> dict[str, float]:
    """Whether every tip is there once; then reactions, and whether every tip has one."""
    given = [json.loads(body)["id"] for body in answers.bodies]
    theirs, kept = set(given), [tip_id for tip_id, *_ in rows(ours.engine)]
    cpu_before = ours.cpu_seconds
    reacted = asyncio.run(react(ours.place, given, options))
    cpu_seconds = ours.cpu_seconds - cpu_before
    after = rows(ours.engine)
    return {
        "lost": len(theirs - set(kept)),
        "double": sum(number > 1 for number in Counter(kept).values()),
        "surplus": len(set(kept) - before - theirs),
        "cpu_ms_per_tip": 1e3 * answers.cpu_seconds / len(answers.bodies),
        "cpu_ms_per_reaction": 1e3 * cpu_seconds / len(reacted.statuses),
        "reactions_per_second": reacted.per_second,
        "tips without reaction": sum(
            tip_id in theirs and reaction is None for tip_id, reaction, _ in after
        ),
        "reactions refused": sum(not 200 <= status < 300 for status in reacted.statuses),
    }


def print_verdict(name: str, kind: str, figures: dict[str, Any]) -> None:
    """Print what became of the goals."""
    found, goal = figures[name], GOAL_REACTIONS[kind]
    print(f"{name:<16} lost {found['lost']}, double {found['double']} rows; "
          f"{found['reactions_per_second']:,.0f} reactions a second on disk "
          f"(goal {goal:,})")  # fmt: skip
    print(f"  processor time: {found['cpu_ms_per_tip']:.2f} ms a tip, "
          f"{found['cpu_ms_per_reaction']:.3f} ms a reaction")  # fmt: skip
    met = "met" if found["added_p99_ms"] <= GOAL_ADDED_MS else "missed"
    print(f"  added at p99: {found['added_p99_ms']:.1f} ms; goal of {GOAL_ADDED_MS:g} ms {met}")
    if "LiteLLM" in figures:
        share = found["added_p99_ms"] / figures["LiteLLM"]["added_p99_ms"]
        print(f"  that is {share:.2f} of LiteLLM's")


def bearer(key: str) -> str:
    """The header line of a key; LiteLLM and ours both check one."""
    return f"authorization: Bearer {key}\r\n"


async def react(place: Place, tip_ids: list[str], options: argparse.Namespace) -> Answers:
    """Reactions to the tips, one after the other and again, as fast as they are recorded."""

    def request(number: int) -> tuple[str, bytes]:
        body = {"tip_id": tip_ids[number % len(tip_ids)], "reaction": "done", "dwell_ms": number}
        return "/v1/reactions", json.dumps(body).encode()

    return await flood(
        place.address, request,
        connections=options.connections, seconds=FLOOD_SECONDS, headers=place.headers,
    )  # fmt: skip


def print_latencies(name: str, answers: Answers, options: argparse.Namespace) -> dict[str, float]:
    """Print and return the latencies, less the stub's delay."""
    found = {
        f"added_p{percent:g}_ms": answers.percentile_ms(percent) - options.delay_ms
        for percent in (50, 99)
    }
    failed = sum(not 200 <= status < 300 for status in answers.statuses)
    p50, p99 = found["added_p50_ms"], found["added_p99_ms"]
    print(f"{name:<16} adds {p50:7.1f} ms at the median, {p99:8.1f} at p99; {failed} failed")
    return {**found, "requests": len(answers.statuses), "failed": failed}


def rows(engine: sa.Engine) -> list[tuple[str, str | None, int | None]]:
    """Id, reaction and dwell of every recorded tip."""
    columns = (tip_scores.c.tip_id, tip_scores.c.reaction, tip_scores.c.dwell_ms)
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(sa.select(*columns))]


@contextlib.contextmanager
def store_urls(folder: Path) -> Iterator[dict[str, str]]:
    """A SQLite file, and a PostgreSQL server of our own, which flushes to disk as in production."""
    urls = {"sqlite": f"sqlite:///{folder / 'bench.db'}"}
    cluster = Path(tempfile.mkdtemp(prefix="reactune-bench-"))
    make_cluster(cluster)
    # The tests' server skips fsync; a benchmark must not.
    port = free_port()
    with running_postgres(cluster, port=port, options=()):
        server = f"postgresql://postgres@127.0.0.1:{port}"
        engine = sa.create_engine(f"{server.replace('://', '+psycopg://')}/postgres")
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text("CREATE DATABASE workers"))
        engine.dispose()
        yield {**urls, "postgresql": f"{server}/postgres", TWO_WORKERS: f"{server}/workers"}


@contextlib.contextmanager
def serving(url: str, folder: Path, model: int, *, workers: int) -> Iterator[Ours]:
    """`reactune serve` with a challenger at 5 %, in front of the stub."""
    prompts, base = folder / "prompt", base_model(ModelConfig()).folder
    write_prompt_folder(load_chat(base, PromptConfig()), base, prompts)
    engine, port = create_store(url), free_port()
    set_champion(engine, replace(version(1), prompt_folder=prompts))
    set_challenger(engine, replace(version(2), prompt_folder=prompts), share=0.05)
    key = make_key(engine, "bench", ["app"], now=datetime.now(UTC))
    settings = folder / "reactune.toml"
    settings.write_text(
        f"[store]\nurl = '{url}'\n[serve]\nport = {port}\nruntime = 'ollama'\n"
        f"workers = {workers}\n"
        f"ollama_url = 'http://127.0.0.1:{model}'\nrequests_per_second = 1000000\n"
        "max_tips_waiting = 5000\n"
    )
    program = "from reactune.cli import main; main()"
    command = [sys.executable, "-c", program, "--config", str(settings), "serve"]
    with running(command, f"http://127.0.0.1:{port}/readyz", folder) as process:
        yield Ours(Place(f"http://127.0.0.1:{port}", bearer(key)), engine, process)
    engine.dispose()


@contextlib.contextmanager
def running(
    command: list[str], ready: str, folder: Path, **variables: str
) -> Iterator[psutil.Process]:
    """A process, once `ready` answers; its output is in the folder."""
    environment = {**os.environ, "REACTUNE_KEY": "k" * 32, **variables}
    log = folder / f"log-{free_port()}"
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=output, env=environment) as process,
    ):
        try:
            wait_until(lambda: answers(ready), seconds=START_SECONDS, process=process, log=log)
            yield psutil.Process(process.pid)
        finally:
            process.terminate()


if __name__ == "__main__":
    np.seterr(all="raise")
    main()
