"""The tagger: word features are those it was trained on, and names do not depend on neighbours."""

import gzip
import pickle
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reactune.pii.spans import MODEL_KINDS
from reactune.pii.tagger import (
    CASES,
    CHUNK_WORDS,
    LEXICON,
    MARGIN,
    ROWS,
    case_of,
    classes_of,
    features_of,
    find_names,
    lexicon,
    load_tagger,
    probabilities,
    rows_of,
    shape_of,
    style_of,
    words_of,
)

TAGGER = load_tagger()


def names(*texts, kinds=("PERSON",)):
    return [
        [text[span.start : span.end] for span in spans]
        for text, spans in zip(texts, find_names(TAGGER, texts, kinds=kinds), strict=True)
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Call Anna-Lena at 10:30!", ["Call", "Anna", "-", "Lena", "at", "10", ":", "30", "!"]),
        ("a_b\nc", ["a", "_", "b", "\n", "c"]),
        ("6XE", ["6", "XE"]),
        ("@an_na: a@b.c", ["@an_na", ":", "a", "@", "b", ".", "c"]),
        ("", []),
        ("  ", []),
    ],
)
def test_words_are_runs_of_letters_or_digits_and_single_marks(text, words):
    assert [text[start:end] for start, end in words_of(text)] == words


@given(st.text(max_size=60))
def test_words_cover_everything_but_spaces(text):
    covered = "".join(text[start:end] for start, end in words_of(text))
    assert covered == "".join(char for char in text if char == "\n" or not char.isspace())


@pytest.mark.parametrize(
    ("word", "shape"),
    [("Anna", "Xxxx"), ("ANNA", "XXXX"), ("annabella", "xxxx"), ("McDonald", "XxXxxxx"), 
     ("12", "dd"), ("ß", "x"), ("Жук", "Xxx"), ("王", "x"), ("-", "-"), ("1234567", "dddd")],
)  # fmt: skip
def test_the_shape_of_a_word_has_runs_of_at_most_four(word, shape):
    assert shape_of(word) == shape


def test_features_are_the_checksums_that_the_weights_were_trained_with():
    expected = [
        "wanna", "hXxxx", f"l{lexicon().get('anna', '')}", "z4", "pa", "pan", "pann", "sa", "sna",
        "snna", "sanna", "g^an", "gann", "gnna", "gna$",
    ]  # fmt: skip
    assert features_of("Anna") == tuple(crc32(name.encode()) % ROWS for name in expected)


def test_features_of_a_very_long_word_are_those_of_its_beginning():
    assert features_of("a" * 40) == features_of("a" * 4_000)


def test_features_do_not_depend_on_case_but_for_the_shape():
    assert len(set(features_of("Anna")) ^ set(features_of("anna"))) == 2


def test_the_lexicon_maps_each_word_to_all_the_lists_that_hold_it():
    with gzip.open(LEXICON, "rt", encoding="utf-8") as lines:
        classes, words = next(lines).rstrip("\n").split("\t")
    assert {classes_of(word) for word in words.split(" ")[:50]} == {classes}
    assert classes_of("no such word") == ""


def test_a_probability_is_given_for_each_word_and_they_sum_to_one():
    texts = [["Call", "Anna"], [], ["Take", "a", "walk"]]
    likely, starts = probabilities(TAGGER, texts)
    assert starts == [MARGIN, MARGIN + 2 + MARGIN, MARGIN + 2 + 2 * MARGIN]
    rows = [
        start + number
        for start, text in zip(starts, texts, strict=True)
        for number in range(len(text))
    ]
    assert np.allclose(likely[rows].sum(axis=1), 1, atol=1e-5)
    others = np.delete(likely, rows, axis=0)
    assert not others.any()


def test_without_words_there_are_no_probabilities_above_zero():
    likely, starts = probabilities(TAGGER, [[], []])
    assert not likely.any()
    assert len(starts) == 2


def reference(words):
    """The network as one convolution after the other, word by word."""
    table, width = TAGGER.table, TAGGER.table.shape[1]
    vectors = [table[list(rows_of(TAGGER, word))].sum(axis=0) for word in words]
    hidden = len(TAGGER.first_bias)
    first = TAGGER.flat_first.reshape(width, 5, hidden)

    def window(rows, place, size, step=1):
        empty = np.zeros(size, np.float32)
        places = range(place - 2 * step, place + 2 * step + 1, step)
        return [rows[p] if 0 <= p < len(rows) else empty for p in places]

    def after(rows, place, weights, bias, step=1):
        near = enumerate(window(rows, place, hidden, step))
        return np.maximum(sum(v @ weights[o] for o, v in near) + bias, 0) + rows[place]

    seen = [
        np.maximum(
            TAGGER.first_bias
            + TAGGER.by_style[style_of(words)]
            + sum(v @ first[:, o] for o, v in enumerate(window(vectors, place, width))),
            0,
        )
        for place in range(len(words))
    ]
    numbers = range(len(words))
    wide = [after(seen, place, TAGGER.second, TAGGER.second_bias) for place in numbers]
    for place in numbers:
        scores = after(wide, place, TAGGER.third, TAGGER.third_bias, step=2) @ TAGGER.out
        chances = np.exp(scores + TAGGER.out_bias - (scores + TAGGER.out_bias).max())
        yield chances / chances.sum()


def test_the_batched_network_is_the_one_computed_word_by_word():
    words = ["Call", "Anna", "Schmidt", "in", "Berlin", "at", "12"]
    likely, (start,) = probabilities(TAGGER, [words])
    assert np.allclose(likely[start : start + len(words)], list(reference(words)), atol=1e-5)


@pytest.mark.parametrize(
    "case", ["Call Anna in Berlin now", "call anna", "CALL ANNA NOW", "Anna In Her Town"]
)
def test_a_text_of_any_case_is_computed_as_word_by_word(case):
    words = case.split()
    likely, (start,) = probabilities(TAGGER, [words])
    assert np.allclose(likely[start : start + len(words)], list(reference(words)), atol=1e-5)
    assert case_of(words) == ["Call Anna in Berlin now", "call anna", "CALL ANNA NOW",
                              "Anna In Her Town"].index(case)  # fmt: skip


PROSE = "In 1897 she moved with her two sons to Lyon and later to Geneva ."


@pytest.mark.parametrize("text", [
    PROSE, PROSE.lower(), f"{PROSE[:-2]} ( as a nurse )", f'" {PROSE[:-2]} . "',
])  # fmt: skip
def test_a_whole_sentence_is_prose(text):
    words = text.split()
    assert style_of(words) == case_of(words) + CASES


@pytest.mark.parametrize("text", [
    "Call Anna in Berlin .", PROSE[:-2], f"@anna {PROSE}", f"# {PROSE}",
    f"http : / / t.co / x {PROSE}", "",
])  # fmt: skip
def test_a_tip_or_a_post_is_no_prose(text):
    words = text.split()
    assert style_of(words) == case_of(words)


@pytest.mark.parametrize("joint", [", ", " , ", ","])
def test_places_on_both_sides_of_a_comma_are_two(joint):
    text = f"She was born in Newark{joint}Ohio and lives in Berlin now, as a nurse."
    (spans,) = find_names(TAGGER, [text], kinds={"PLACE"})
    assert [text[s.start : s.end] for s in spans] == ["Newark", "Ohio", "Berlin"]


def test_a_long_text_is_read_in_blocks_as_in_one(monkeypatch):
    words = [f"{word}{'x' * (n % 7)}" for n in range(40) for word in ("Call", "Anna", ",", "then")]
    texts = [words, [], ["Anna"], words[:9]]
    whole, _ = probabilities(TAGGER, texts)
    for size in (1, 7, 50):
        monkeypatch.setattr("reactune.pii.tagger.CHUNK_WORDS", size)
        assert np.allclose(probabilities(TAGGER, texts)[0], whole, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(["Call Anna.", "", "Tom Lee", "walk", "ask Bo"]), max_size=6))
def test_texts_of_one_batch_do_not_influence_each_other(texts):
    together = find_names(TAGGER, texts, kinds=MODEL_KINDS)
    assert together == [find_names(TAGGER, [text], kinds=MODEL_KINDS)[0] for text in texts]


def test_many_texts_are_found_in_chunks_as_in_one():
    texts = ["Call Anna Schmidt today."] * (CHUNK_WORDS // 3)
    assert set(map(tuple, names(*texts))) == {("Anna Schmidt",)}


def test_kinds_that_are_not_asked_for_are_not_found():
    assert names("Call Anna in Paris.", kinds=("PLACE",)) == [["Paris"]]
    assert names("Call Anna in Paris.", kinds=()) == [[]]
    assert names("Call Anna in Paris.", kinds=("EMAIL",)) == [[]]


@pytest.mark.parametrize("text", ["A", "?", "12", "\n"])
def test_a_single_letter_or_mark_is_no_name(text):
    assert names(text, kinds=MODEL_KINDS) == [[]]


def test_the_weights_are_read_once_and_hold_no_name_as_the_first_kind():
    assert load_tagger() is TAGGER
    assert TAGGER.kinds[0] not in MODEL_KINDS
    assert set(TAGGER.kinds[1:]) <= MODEL_KINDS
    assert 0 < TAGGER.threshold < 1
    assert "table" not in repr(TAGGER)
    assert pickle.loads(pickle.dumps(TAGGER)).kinds == TAGGER.kinds


def test_a_frequent_word_has_a_row_of_its_own_in_any_case():
    word = next(iter(TAGGER.frequent))
    assert rows_of(TAGGER, word)[-1] == TAGGER.frequent[word] >= ROWS
    assert rows_of(TAGGER, word.upper())[-1] >= ROWS
    assert rows_of(TAGGER, "zzyzxqw") == features_of("zzyzxqw")
    assert len(TAGGER.table) == ROWS + len(TAGGER.frequent)


def test_a_handle_is_no_name_and_a_nationality_no_place():
    assert names("@anna_b said so", kinds=("PERSON", "PLACE")) == [[]]
    assert names("an Italian restaurant in Rome", kinds=("PLACE",)) == [["Rome"]]


@pytest.mark.parametrize(
    "text", ["Bench 5x5 at 60, 65, 70, 75, 80 kg.", "Close issues 4021, 4033 and 4035 first."]
)
def test_a_list_of_numbers_is_no_address(text):
    assert names(text, kinds=("ADDRESS",)) == [[]]


def test_each_handle_after_an_at_sign_of_its_own_is_a_name_but_no_place_or_hour():
    assert names("thanks @ anna_kowalski @ BoJensen for the soup !") == [
        ["@ anna_kowalski", "@ BoJensen"]
    ]
    plain = ("Lunch @ noon, gym @ 5.", "Dinner @ home with a book.", "Meet @ the library.")
    assert names(*plain) == [[], [], []]


def test_parts_of_a_building_are_no_address_without_a_street():
    texts = ("Room 2.14, floor 2, 09:00-10:30.", "He lives at 12 Baker Street, floor 2.")
    alone, with_street = names(*texts, kinds=("ADDRESS",))
    assert alone == []
    assert with_street[0].startswith("12 Baker Street")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("old friend moved away", []),
        ("my teacher called, then a stranger waved", []),
        ("old anna moved away", ["anna"]),
    ],
)
def test_common_words_in_small_letters_are_names_only_where_that_is_clear(text, names):
    (spans,) = find_names(TAGGER, [text], kinds=("PERSON", "PLACE"))
    assert [text[each.start : each.end] for each in spans] == names


def test_a_mark_or_a_common_word_between_two_names_does_not_join_them():
    (found,) = names("They flew to Asia, Africa and Peru, then to Oslo.", kinds=("PLACE",))
    assert found == ["Asia", "Africa", "Peru", "Oslo"]


def test_small_letters_must_be_surer_where_other_words_have_capitals(monkeypatch):
    monkeypatch.setattr("reactune.pii.tagger.SURE_OF_SMALL", 1.1)
    kinds = ("PERSON", "PLACE")
    assert names("Call anna in Paris.", "call anna in paris.", kinds=kinds) == [
        ["Paris"],
        ["anna", "paris"],
    ]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("The record was produced by Eno and the Irish band The Frames in Dublin.",
         ["Eno", "Dublin"]),
        ("Wanda Landowska taught at the University of Music in Berlin until 1919.",
         ["Wanda Landowska", "Berlin"]),
        ("It was first published by Oxford University Press in 1911.", []),
    ],
)  # fmt: skip
def test_in_encyclopedic_texts_bands_and_firms_are_no_persons_or_places(text, names):
    (spans,) = find_names(TAGGER, [text], kinds=("PERSON", "PLACE"))
    assert [text[each.start : each.end] for each in spans] == names
