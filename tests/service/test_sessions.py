from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from reactune.service.sessions import (
    LASTS,
    close_session,
    form_token,
    is_form_token,
    key_of_session,
    open_session,
    record_action,
)
from reactune.store.schema import page_actions, page_sessions

NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)


def test_a_session_leads_to_its_key_until_it_ends(engine):
    token = open_session(engine, "1f2e3d4c", now=NOW)
    assert key_of_session(engine, token, now=NOW) == "1f2e3d4c"
    assert key_of_session(engine, token, now=NOW + LASTS - timedelta(seconds=1)) == "1f2e3d4c"
    assert key_of_session(engine, token, now=NOW + LASTS) is None
    assert key_of_session(engine, token[:-1], now=NOW) is None
    assert key_of_session(engine, "", now=NOW) is None


def test_a_closed_session_is_over(engine):
    token, other = (open_session(engine, "1f2e3d4c", now=NOW) for _ in range(2))
    for _ in range(2):
        close_session(engine, token)
    assert key_of_session(engine, token, now=NOW) is None
    assert key_of_session(engine, other, now=NOW) == "1f2e3d4c"


def test_the_database_holds_no_token_and_no_session_that_has_ended(engine):
    old = open_session(engine, "1f2e3d4c", now=NOW)
    token = open_session(engine, "1f2e3d4c", now=NOW + LASTS)
    with engine.connect() as connection:
        rows = connection.execute(sa.select(page_sessions)).mappings().all()
    assert len(rows) == 1
    assert not {token, old} & set(map(str, rows[0].values()))


def test_forms_of_another_session_are_not_taken():
    assert is_form_token(form_token("one"), "one")
    assert not is_form_token(form_token("two"), "one")
    assert not is_form_token("", "one")
    assert not is_form_token("ü", "one")


def test_an_action_is_a_row(engine):
    record_action(engine, "1f2e3d4c", "promote", now=NOW, subject="r1", reason="better")
    with engine.connect() as connection:
        (row,) = connection.execute(sa.select(page_actions)).mappings()
    assert {**row, "action_id": 0} == {
        "action_id": 0, "at": NOW, "key_id": "1f2e3d4c", "action": "promote", "subject": "r1",
        "reason": "better", "outcome": "done",
    }  # fmt: skip
