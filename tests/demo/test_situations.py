"""The situations of people, and the settings with the prompts made from them."""

import tomllib

import pytest

from reactune.config.settings import load
from reactune.demo.situations import (
    CONTEXT_KEYS,
    GOALS,
    HOURS,
    KINDS,
    NOTES,
    TASKS,
    demo_settings,
    situations,
)


def test_the_same_seed_gives_the_same_situations_and_more_of_them_begin_alike():
    assert situations(50, seed=3) == situations(80, seed=3)[:50]
    assert situations(50, seed=3) != situations(50, seed=4)


def test_no_situation_is_drawn_twice_and_kinds_and_roles_take_turns():
    drawn = situations(400, seed=1)
    assert len({repr(each) for each in drawn}) == 400
    assert [each.kind for each in drawn[:6]] == [*KINDS, KINDS[0]]
    assert {each.role for each in drawn[:40]} == set(TASKS)


def test_a_situation_holds_what_the_page_of_the_demo_states():
    drawn = situations(2_000, seed=2)
    for each in drawn:
        context = each.context
        assert context["time_of_day"] == HOURS[each.hour]
        assert context["user_settings"]["goal"] in GOALS
        assert len(context["open_tasks"]) in (2, 3)
        assert context.get("free_text", NOTES[0]) in NOTES
        assert context.keys() <= set(CONTEXT_KEYS)
    notes = sum("free_text" in each.context for each in drawn)
    mails = sum("@" in repr(each.context) for each in drawn)
    assert notes / 2_000 == pytest.approx(0.6, abs=0.05)
    assert mails / 2_000 == pytest.approx(0.03, abs=0.015)


def test_the_settings_of_the_demo_are_read_without_a_warning(tmp_path, recwarn):
    file = tmp_path / "reactune.toml"
    file.write_text(demo_settings(), encoding="utf-8")
    config = load(file)
    assert config.prompt.context_keys == CONTEXT_KEYS
    assert set(config.prompt.instructions) == set(KINDS)
    assert set(tomllib.loads(demo_settings())["prompt"]["cut_order"]) == set(CONTEXT_KEYS)
    assert [str(each.message) for each in recwarn] == []
