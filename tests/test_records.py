"""Texts as they are compared, and values as they are written."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reactune.records import (
    Estimate,
    canonical_json,
    folded_text,
    one_line,
    plain_words,
    replacing,
    sha256_of,
    write_atomically,
)


def test_a_figure_is_written_with_its_interval():
    assert str(Estimate(0.51234, 0.4, 0.6)) == "0.512 [0.400, 0.600]"


def test_white_space_alone_does_not_make_another_text():
    assert one_line(" Take\u00a0a\n\n walk.\t") == "Take a walk."
    assert one_line("Take a walk.") != one_line("take a walk.")


def test_case_alone_does_not_make_another_text():
    assert folded_text("STRASSE  frei") == folded_text("straße frei") == "strasse frei"
    assert folded_text("Go.") != folded_text("Go!")


@pytest.mark.parametrize(
    "text",
    ["take a walk", "Take a WALK!", "take, a walk...", "take_a_walk", "\uff54ake a walk"],
)
def test_punctuation_and_forms_of_characters_do_not_make_other_words(text):
    assert plain_words(text) == "take a walk"


@given(st.text())
def test_comparing_a_compared_text_changes_nothing(text):
    assert one_line(one_line(text)) == one_line(text)
    assert folded_text(folded_text(text)) == folded_text(text)
    assert " ".join(plain_words(text).split()) == plain_words(text)


def test_equal_values_give_equal_json():
    assert canonical_json({"b": 1, "a": "ä"}) == canonical_json({"a": "ä", "b": 1})
    assert canonical_json({"b": [1, 2], "a": None}) == '{"a":null,"b":[1,2]}'


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    file = tmp_path / "new" / "a.txt"
    write_atomically(file, "first")
    with replacing(file) as partial:
        partial.write_text("second")
        assert file.read_text() == "first"
    assert file.read_text() == "second"
    with pytest.raises(UnicodeEncodeError):
        write_atomically(file, "third \ud800")
    assert file.read_text() == "second"
    assert list(file.parent.iterdir()) == [file]


def test_a_file_that_was_never_written_replaces_nothing(tmp_path):
    write_atomically(tmp_path / "a.txt", "first")
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a.txt"):
        pass
    assert (tmp_path / "a.txt").read_text() == "first"


@pytest.mark.parametrize("text", ["", "größer\n", "\u2028"])
def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path, text):
    write_atomically(tmp_path / "a.txt", text)
    assert sha256_of(tmp_path / "a.txt") == hashlib.sha256(text.encode()).hexdigest()
