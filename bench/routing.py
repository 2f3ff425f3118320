"""How long one routing decision takes in the app's process, beside GrowthBook's SDK and a hash.

Ours is the whole of `Router.decide`: hash the user id with the key, name the unit of the day, draw
the arm, build the exposure; its thread reads the rollout from a real SQLite store meanwhile.
A user is met for the first time on a day, or again; "four a day" is every user's first decision
and three more. GrowthBook's is `run` of an experiment with the same shares for the same ids; the
plain hash is SHA-256 of salt and id modulo 10,000, which neither hides the id nor names unit or
exposure.
"""

import argparse
import hashlib
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import numpy as np
import psutil
from growthbook import Experiment, GrowthBook

from reactune import Router
from reactune.canary import rollout
from reactune.config.sections import CanaryConfig
from reactune.privacy.hashing import HashingKey
from reactune.records import ModelVersion
from reactune.store.database import create_store, writing
from reactune.store.queries import add_model_version
from record import record

GOAL_MICROSECONDS = 20.0
SHARE, SALT = 0.05, "salt of the bench"


def main() -> None:
    """Time all three by turns, print percentiles, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decisions", type=int, default=200_000)
    options = parser.parse_args()
    users = [f"user-{number}@example.org" for number in range(2_000)]
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'bench.db'}"
        open_rollout(url)
        with Router.from_store(url, key=HashingKey(b"k" * 32)) as router:
            deciders: dict[str, Callable[[str], object]] = {
                "reactune, user known": router.decide,
                "reactune, new user": newcomers(router),
                "reactune, four a day": newcomers(router, decisions=4),
                "growthbook": growthbook,
                "plain hash": plain_hash,
            }
            times = timed(deciders, users, rounds=options.decisions // len(users))
    figures: dict[str, object] = {"decisions": options.decisions, "load": psutil.getloadavg()[0]}
    for name, taken in times.items():
        p50, p99, p999 = np.percentile(taken, [50, 99, 99.9])
        print(f"{name:<20} median {p50:6.2f}  p99 {p99:6.2f}  p99.9 {p999:6.2f} microseconds")
        figures[name] = {"median_us": p50, "p99_us": p99, "p999_us": p999}
    for name in [each for each in times if each.startswith("reactune")]:
        met = "met" if float(np.percentile(times[name], 99)) < GOAL_MICROSECONDS else "missed"
        print(f"{name}: goal of {GOAL_MICROSECONDS:g} microseconds at p99 {met}")
    print(f"load of the machine: {figures['load']:.1f} on {psutil.cpu_count()} cores")
    print(f"kept in {record('routing', figures, packages=('growthbook',)).name}")


def timed(
    deciders: dict[str, Callable[[str], object]], users: list[str], *, rounds: int
) -> dict[str, np.ndarray]:
    """Microseconds of every decision; by turns, so that a busy machine hits all alike."""
    times: dict[str, list[int]] = {name: [] for name in deciders}
    for number in range(rounds + 1):
        for name, decide in deciders.items():
            for user in users:
                started = time.perf_counter_ns()
                decide(user)
                if number:  # after the first round its users are known
                    times[name].append(time.perf_counter_ns() - started)
    return {name: np.array(taken) / 1_000 for name, taken in times.items()}


def newcomers(router: Router, *, decisions: int = 1) -> Callable[[str], object]:
    """Decisions for users that the router has not seen before, so many for each of them."""
    number = count()

    def decide(user: str) -> object:
        return router.decide(f"user-{decisions}-{next(number) // decisions}@example.org")

    return decide


def growthbook(user: str) -> object:
    """GrowthBook's SDK, as its documentation uses it: one instance a user."""
    experiment = Experiment(
        key="tips", variations=[0, 1], weights=[1 - SHARE, SHARE], seed=SALT, hashVersion=2
    )
    return GrowthBook(attributes={"id": user}).run(experiment)


def plain_hash(user: str) -> object:
    """What one writes without a library."""
    digest = hashlib.sha256(f"{SALT}{user}".encode()).digest()
    return int.from_bytes(digest[:8]) % 10_000 < SHARE * 10_000


def open_rollout(url: str) -> None:
    """A store with a champion and a challenger."""
    engine, now = create_store(url), datetime.now(UTC)
    for number in (1, 2):
        model = ModelVersion(
            version=number, name=f"v{number}", run_id=f"{number}", gguf=Path("none"), sha256="0",
            prompt_folder=Path("none"), base="none", quantisation="q8_0",
        )  # fmt: skip
        with writing(engine) as connection:
            add_model_version(connection, model, now)
    settings = CanaryConfig(share=SHARE)
    rollout.bootstrap_champion(engine, 1, settings=settings, now=now)
    rollout.open_rollout(engine, 2, settings=settings, salt=SALT, now=now)
    engine.dispose()


if __name__ == "__main__":
    main()
