"""Before and after the canary: the shadow phase and the holdback."""

import asyncio
import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from loop_fixtures import copy_of_trained, expose
from reactune import deployment, review
from reactune.canary import rollout
from reactune.canary.rollout import Holdback, ShadowReport, first_share, judge_shadow, read_shadow
from reactune.config.sections import CanaryConfig
from reactune.records import Completion, Reason
from reactune.service.events import Recorder, ShadowAnswer
from reactune.service.state import close_service
from reactune.service.tips import TipRequest, create_tip
from reactune.status import status
from reactune.store.queries import current_rollout
from reactune.store.schema import silent_answers
from serving_fixtures import (
    MORNING,
    NOON,
    ModelServer,
    fails,
    register,
    roll_back,
    rows_of,
    service_of,
    set_champion,
    version,
)

NOW = datetime(2026, 12, 1, tzinfo=UTC)
SHADOW = CanaryConfig(shadow_answers=10, shadow_faults=0.2, ramp=())
UNSEEN = "A tip that no user may see."


class Counting(ModelServer):
    """A model server that counts a prompt's tokens as the template does, or not."""

    def __init__(self, answers, chat, *, more=0):
        super().__init__(answers)
        self.chat, self.more = chat, more

    def generate(self, model, prompt, sampling):
        made = super().generate(model, prompt, sampling)
        tokens = len(self.chat.tokenizer.encode(prompt, add_special_tokens=False).ids) + self.more
        return Completion(made.text, tokens, 5, "stop", 0.01)


def set_shadow(engine):
    register(engine, version(2))
    return rollout.open_rollout(engine, 2, settings=SHADOW, salt="salt", now=NOON)


def ask_some(service, count=3):
    """Tips for some users, after their shadow answers are done."""

    async def asking():
        tips = []
        for number in range(count):
            request = TipRequest(f"person-{number}@example.org", "focus", MORNING)
            tips.append(await create_tip(service, request))
            await asyncio.gather(*service.shadow_tasks)
        return tips

    return asyncio.run(asking())


def shadow_of(engine, opened):
    with engine.connect() as connection:
        return read_shadow(connection, opened.rollout_id, slow_ms=5_000)


def test_shadow_answers_are_counted_and_never_shown_or_stored(engine, chat):
    set_champion(engine)
    opened = set_shadow(engine)
    assert (opened.phase, opened.share) == ("shadow", 0.0)
    server = Counting({1: "Champion's tip.", 2: UNSEEN}, chat)
    service = service_of(engine, chat, server)
    assert {tip.content for tip in ask_some(service)} == {"Champion's tip."}
    close_service(service)
    assert {(row["arm"], row["propensity"]) for row in rows_of(engine)} == {("champion", 1.0)}
    assert shadow_of(engine, opened) == ShadowReport(3, failed=0, refused=0, slow=0, misread=0)
    with engine.connect() as connection:
        for table in silent_answers.metadata.sorted_tables:
            assert UNSEEN not in str(connection.execute(sa.select(table)).all())


@pytest.mark.parametrize(
    ("answer", "more", "fault"),
    [(fails, 0, "failed"), ("Write to me@example.org", 0, "refused"), (UNSEEN, 1, "misread")],
)
def test_faults_of_shadow_answers_are_counted(engine, chat, answer, more, fault):
    set_champion(engine)
    opened = set_shadow(engine)
    service = service_of(engine, chat, Counting({1: "A tip.", 2: answer}, chat, more=more))
    ask_some(service)
    close_service(service)
    seen = shadow_of(engine, opened)
    assert (seen.answers, getattr(seen, fault)) == (3, 3)
    assert seen.failed + seen.refused + seen.slow + seen.misread == 3


def test_shadow_answers_are_deleted_with_their_rollout_and_late_ones_are_ignored(engine, chat):
    set_champion(engine)
    opened = set_shadow(engine)
    service = service_of(engine, chat, Counting({1: "A tip.", 2: UNSEEN}, chat))
    ask_some(service)
    roll_back(engine, opened)
    ask_some(service)
    close_service(service)
    assert shadow_of(engine, opened).answers == 0


@pytest.mark.parametrize(
    ("report", "verdict", "reason", "share"),
    [
        (ShadowReport(9, 0, 0, 0, 0), "wait", "9 of 10 shadow answers", None),
        (ShadowReport(10, 1, 1, 0, 0), "wait", "shadow phase passed", 0.05),
        (ShadowReport(10, 1, 1, 1, 0), "roll back", "shadow phase failed", None),
        (ShadowReport(3, 3, 0, 0, 0), "roll back", "shadow phase failed", None),
        (ShadowReport(30, 2, 2, 2, 0), "wait", "shadow phase passed", 0.05),
        (ShadowReport(1, 0, 0, 0, 1), "roll back", "another prompt template", None),
    ],
)
def test_the_shadow_phase_is_judged_by_its_faults(report, verdict, reason, share):
    decision = judge_shadow(report, settings=SHADOW)
    assert (decision.verdict, reason in decision.reason) == (verdict, True)
    assert first_share(report, decision, settings=SHADOW) == share


def in_shadow(folder, verdict):
    """An installation with version 2 in the shadow phase, and ten shadow answers."""
    config = copy_of_trained(folder, canary={"shadow_answers": 10})
    review.roll_back(config, now=NOW)
    opened = deployment.open_rollout(config, 2, now=NOW)
    with deployment.database(config) as engine:
        recorder = Recorder(engine)
        for number in range(10):
            answer = ShadowAnswer(
                f"shadow-{number}", opened.rollout_id, verdict, answer_ms=10, prompt_tokens=7,
                tokens_read=7, at=NOW,
            )  # fmt: skip
            recorder.submit(answer).result()
        recorder.close()
    return config


@pytest.mark.slow
def test_a_passed_shadow_phase_starts_the_canary(tmp_path):
    config = in_shadow(tmp_path, "passed")
    assert "shadow    10 shadow answers: 0 failed" in "\n".join(status(config, now=NOW))
    found = review.review(config, now=NOW)
    assert found.line.startswith("wait: shadow phase passed: 10 shadow answers")
    assert (found.rollout.phase, found.rollout.share) == ("canary", 0.05)
    assert "share 0% -> 5%" in found.line


def test_a_challenger_whose_shadow_answers_are_refused_is_rolled_back(tmp_path):
    found = review.review(in_shadow(tmp_path, "unsafe"), now=NOW)
    assert (found.verdict, found.rollout.challenger) == ("roll back", None)
    assert "10 refused by the guard" in found.line


def test_a_holdback_reports_the_gain_since_the_promotion(tmp_path):
    config = copy_of_trained(tmp_path, canary={"holdback": 0.1})
    now = expose(config, 2_000, champion=0.2, challenger=0.8)
    kept = review.review(config, now=now).rollout
    assert (kept.champion, kept.challenger, kept.phase, kept.share) == (2, 1, "holdback", 0.1)
    assert "at 10% (holdback since" in "\n".join(status(config, now=now))
    now = expose(config, 60, champion=0.5, challenger=0.5)
    review.review(config, now=now)
    with deployment.database(config) as engine, engine.connect() as connection:
        assert current_rollout(connection).share == 0.1  # it does not grow
    now = expose(config, 2_000, champion=0.7, challenger=0.3, first=60)
    found = review.review(config, now=now)
    gain = -100 * found.comparison.estimate
    assert "version 2 was promoted at +" in found.line
    assert f"and is now at {gain:+.1f}" in found.line
    # The holdback is drawn anew: some 200 users, and 40 points with a standard error of 3.4.
    assert 20 < gain < 60


def test_a_new_challenger_ends_a_holdback(engine):
    set_champion(engine)
    for number in (2, 3):
        register(engine, version(number))
    settings = CanaryConfig()
    opened = rollout.open_rollout(engine, 2, settings=settings, salt="a", now=NOON)
    kept = rollout.promote(
        engine, opened, Reason("hand", "", {}, NOON), holdback=Holdback(0.1, "b"),
    )  # fmt: skip
    assert (kept.champion, kept.challenger, kept.salt) == (2, 1, "b")
    after = rollout.open_rollout(engine, 3, settings=settings, salt="c", now=NOON)
    assert (after.champion, after.challenger, after.phase) == (2, 3, "canary")


def test_counts_of_shadow_answers_are_stored_with_the_decision(tmp_path):
    config = in_shadow(tmp_path, "passed")
    review.review(config, now=NOW)
    with closing(sqlite3.connect(config.folder / "reactune.db")) as connection:
        stored = connection.execute("SELECT numbers_json FROM decisions").fetchall()[-1][0]
    assert json.loads(stored)["answers"] == 10
