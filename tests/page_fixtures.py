"""A service with pages over databases of every size, and a browser that is logged in."""

import contextlib
import random
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from fastapi.testclient import TestClient

from reactune.canary import rollout as rollouts
from reactune.canary.compare import age_days, compare, decide
from reactune.canary.outcomes import read_outcomes
from reactune.canary.routing import propensity, route, unit_key
from reactune.config.sections import CanaryConfig, LabelConfig, ServeConfig
from reactune.config.settings import Config
from reactune.erasure.requests import request_erasure
from reactune.privacy.hashing import HashingKeys, user_key
from reactune.records import STAGES, Counts, Reason, canonical_json
from reactune.review import Snapshot, summary_of
from reactune.service.api_keys import make_key
from reactune.service.state import close_service
from reactune.store.database import create_store, reading, writing
from reactune.store.labels import label_rule
from reactune.store.queries import schedule_replacement, upsert_scores
from reactune.store.summaries import Summary, recount, write_summaries
from reactune.web.api import create_app
from serving_fixtures import KEY, ModelServer, register, service_of, set_champion, version

NOW = datetime(2026, 11, 27, 9, 30, tzinfo=UTC)
OPENED = NOW - timedelta(days=9)
ADDRESS = "http://127.0.0.1:8765"
CANARY = CanaryConfig(share=0.25, ramp=(0.5,), planned_units=4_000, min_units_per_step=100)
HOSTILE = "<script>alert('tip')</script><img src=x onerror=alert(1)>"
GONE = "gone@example.org"
CHOICE = canonical_json(
    {
        "candidates": [
            {"text": HOSTILE, "verdict": "passed", "reward": 0.5, "bound": 0.3, "chance": 0.9},
            {"text": "", "verdict": "empty", "reward": None, "bound": None, "chance": 0.0},
            {"text": "Walk.", "verdict": "passed", "reward": -0.2, "bound": -0.4, "chance": 0.1},
        ],
        "chosen": 2,
        "problem": None,
    }
)


@dataclass
class World:
    """A database with a service in front of it."""

    engine: object
    service: object
    config: Config
    app: object
    now: list

    def key(self, *scopes, name="somebody"):
        return make_key(self.engine, name, scopes, now=self.now[0])

    def set_now(self, now):
        self.now[0] = now


@contextlib.contextmanager
def world(url, chat, **serve):
    """A service over an empty database, whose clock stands until it is set."""
    engine, now = create_store(url), [NOW]
    settings = ServeConfig(requests_per_second=10_000, **serve)
    config = Config(serve=settings, canary=CANARY)
    server = ModelServer({1: "Old tip.", 2: "New tip."})
    service = service_of(engine, chat, server, settings=settings, clock=lambda: now[0])
    try:
        yield World(engine, service, config, create_app(service, config), now)
    finally:
        close_service(service)
        engine.dispose()


@contextlib.contextmanager
def client_of(world, token=""):
    """A client of the pages; with a key it is logged in."""
    local = {"base_url": ADDRESS, "client": ("127.0.0.1", 50_000)}
    with TestClient(world.app, follow_redirects=False, **local) as client:
        if token:
            answer = client.post("/login", data={"key": token})
            assert (answer.status_code, answer.headers["location"]) == (303, "/")
        yield client


def exposures(count, rollout, *, lift=0.0, seed=3):
    """Rows of an open rollout, and of ten days before it; some users like tips, some do not."""
    draw, rows = random.Random(seed), []
    for number in range(count):
        before = number % 3 == 0
        user = user_key(KEY, f"user-{draw.randrange(count // 2 or 1)}")
        at = OPENED + timedelta(minutes=draw.randrange(9 * 24 * 60 - 60))
        at -= timedelta(days=10) if before else timedelta()
        unit = unit_key(rollout.unit, tip_id="", user_key=user, at=at)
        arm = "champion" if before else route(unit, salt=rollout.salt, share=rollout.share)
        rate = 0.25 + (lift if arm == "challenger" else 0.0)
        reaction = draw.choices(["done", "dismiss", "snooze", None], [rate, 0.3, 0.1, 0.6 - rate])[
            0
        ]
        dwell = {"done": 15_000 + draw.randrange(90_000), "dismiss": draw.randrange(9_000)}
        rows.append(
            {
                "tip_id": f"t-{number}",
                "user_key": user,
                "key_id": KEY.key_id,
                "kind": draw.choice(["focus", "rest"]),
                "source": "llm",
                "context_json": '{"free_text":"a secret diary"}',
                "tip_content": HOSTILE if number % 7 == 1 else f"Tip number {number}",
                "model_version": 2 if arm == "challenger" else 1,
                "arm": None if before else arm,
                "rollout_id": None if before else rollout.rollout_id,
                "unit_key": unit,
                "propensity": propensity(arm, 0.0 if before else rollout.share),
                "created_at": at,
                "shown_at": at,
                "reaction": reaction,
                "dwell_ms": dwell.get(reaction, 20_000) if reaction else None,
                "reacted_at": at if reaction else None,
                "answer_ms": 40,
                "choice_json": CHOICE if arm == "challenger" and number % 11 == 0 else None,
            }
        )
    return rows


def fill(world, *, tips=1_500, lift=0.0, reviews=3):
    """A champion, a challenger on trial, its reviews, two runs and two erasures."""
    engine = world.engine
    set_champion(engine)
    register(engine, version(2, run_id="20261117-080000-0000"))
    opened = rollouts.open_rollout(engine, 2, settings=CANARY, salt="a salt of tests", now=OPENED)
    rows = exposures(tips, opened, lift=lift)
    for start in range(0, len(rows), 2_000):
        with writing(engine) as connection:
            upsert_scores(connection, rows[start : start + 2_000])
    for number in range(reviews):
        review(world, opened, NOW - timedelta(days=2 * (reviews - 1 - number)))
    write_runs(engine)
    keys = HashingKeys(KEY)
    for day, user in ((8, "user-1"), (1, GONE)):
        at = NOW - timedelta(days=day)
        request_erasure(engine, keys, [user], actor="hand", reason="letter", now=at)
    with writing(engine) as connection:
        schedule_replacement(connection, 2, NOW + timedelta(days=20))
    recount(engine, label_rule(world.config.labels), now=NOW)
    return opened


MANY_TIPS = """
INSERT INTO tip_scores (tip_id, user_key, key_id, kind, source, context_json, tip_content,
    model_version, created_at, shown_at, reaction, dwell_ms, reacted_at, training_allowed, cut)
WITH RECURSIVE numbers(number) AS (
    SELECT CAST(0 AS BIGINT) UNION ALL SELECT number + 1 FROM numbers WHERE number < {count} - 1
), drawn AS (
    SELECT number, (number * 2654435761) % 4294967296 AS draw, {moment} AS at FROM numbers
), reacted AS (
    SELECT number, draw, at, CASE WHEN draw % 100 < 25 THEN 'done' WHEN draw % 100 < 55
        THEN 'dismiss' WHEN draw % 100 < 65 THEN 'snooze' END AS reaction FROM drawn
)
SELECT 'old-' || number, {user}, 'bench',
    CASE draw / 128 % 3 WHEN 0 THEN 'focus' WHEN 1 THEN 'rest' ELSE 'headline' END, 'llm', '{{}}',
    'Write the first line of your essay now.', 1, at, at, reaction,
    CASE WHEN reaction IS NOT NULL THEN draw / 1024 % 120000 END,
    CASE WHEN reaction IS NOT NULL THEN at END, true, false
FROM reacted
"""
MANY_DAYS = 60


def many_tips(engine, count):
    """Tips of sixty days up to now, of a fifth as many users, and their reactions; set-wise."""
    pause = MANY_DAYS * 86_400 / count
    user = f"draw / 4096 % {count // 5}"
    parts = {
        "sqlite": {
            "moment": f"strftime('%Y-%m-%d %H:%M:%f', '{NOW:%F %T}', (-number * {pause})"
            " || ' seconds') || '000'",
            "user": f"printf('%064x', {user})",
        },
        "postgresql": {
            "moment": f"timestamptz '{NOW:%F %T}+00' - number * interval '{pause} seconds'",
            "user": f"lpad(to_hex({user}), 64, '0')",
        },
    }[engine.dialect.name]
    with engine.begin() as connection:
        connection.execute(sa.text(MANY_TIPS.format(count=count, **parts)))
        connection.exec_driver_sql("ANALYZE")


def review(world, opened, now, *, settings=CANARY):
    """What `reactune review` records, without registry and model server."""
    with reading(world.engine) as connection:
        outcomes = read_outcomes(
            connection, opened.rollout_id, labels=LabelConfig(), settings=settings, now=now
        )
    compared = compare(outcomes, settings=settings, planned_units=opened.planned_units)
    snapshot = Snapshot(opened, compared, age_days(outcomes, now=now))
    decision = decide(compared, settings=settings, phase="canary", age_days=snapshot.age_days)
    why = Reason("review", decision.reason, decision.numbers, now)
    rollouts.record_wait(world.engine, opened, why)
    with writing(world.engine) as connection:
        write_summaries(connection, [summary_of(snapshot, outcomes, settings=settings, now=now)])
    return decision


def write_runs(engine):
    """Summaries of a run that put version 2 on trial, and of one that waits."""
    run, at = "20261117-080000-0000", datetime(2026, 11, 17, 8, 30, tzinfo=UTC)
    estimate = {"value": 0.61, "low": 0.55, "high": 0.67}
    accuracy = {"estimate": estimate, "pairs": 900}
    row = {
        "accuracy": estimate, "loss": estimate, "gain_accuracy": None,
        "accuracy_difference": None, "loss_difference": None, "gain_difference": None,
    }  # fmt: skip
    counts = {
        "extract": {
            "labels": asdict(Counts(3_000, 1_400, {"no evidence": 1_600})),
            "de-identification": asdict(Counts(1_400, 1_380, {"personal data": 20})),
        },
        "dataset": {
            "counts": asdict(Counts(1_380, 1_300, {"exact duplicates": 80})),
            "parts": {"train": {"positives": 500, "negatives": 540}},
            "kinds": {"focus": {"positives": 600, "negatives": 700}},
            "users": {"train": 320}, "pairs": {"train": 1_200},
            "fingerprint": "ab" * 32, "new": 1_300,
        },
        "register": {"version": 2},
    }  # fmt: skip
    curve = [[step, 2.5 - step / 100] for step in range(100)]
    figures = {
        "reward": {
            "reason": "",
            "quality": {"accuracies": {"reward": accuracy, "TF-IDF": accuracy},
                        "curve": {"500": accuracy, "1000": accuracy}},
        },
        "train": {"method": "kto", "seconds": {"kto": 62.0}, "curves": {"kto": curve}},
        "evaluate": {
            "rows": [{"model": name, **row} for name in ("base", "tuned")],
            "pairs": 900, "examples": 260, "refusals": [],
            "judged": {
                "rows": [{"model": "base", "beside": {"win_rate": estimate}}],
                "writing": [
                    {"model": name, "shown": 0.98, "reward": reward, "words": 11.5,
                     "distinct_pairs": 0.81, "similarity": 0.04, "logprob": -2.1}
                    for name, reward in (("base", -0.12), ("tuned", 0.74))
                ],
            },
        },
        "export": {"prompts": 24, "tokens": 400, "logprob_gap": 0.04, "failures": 0},
    }  # fmt: skip
    lineage = {
        "outputs": {"file.bin": "cd" * 32}, "inputs": {}, "erased": [],
        "versions": {"reactune": "0.2.0", "torch": "2.13.0"},
        "settings": {"train": {"lora_rank": 8}},
    }  # fmt: skip
    done = [
        Summary(run, stage, "done", f"{stage}: done", at, counts.get(stage, {}),
                figures.get(stage, {}), lineage, 12.0)
        for stage in STAGES
    ]  # fmt: skip
    waits = Summary(
        "20261126-080000-0000", "extract", "waiting",
        "waiting: version 2 is on trial; `reactune review` decides it", at,
    )  # fmt: skip
    with writing(engine) as connection:
        write_summaries(connection, [*done, waits])
