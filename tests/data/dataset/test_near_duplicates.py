"""Texts that nearly repeat an earlier one, against a comparison of all with all."""

import random
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_fixtures import WORDS
from reactune.data.dataset.near_duplicates import (
    MISSED,
    PERMUTATIONS,
    banding,
    mark_near_duplicates,
    shingle_hashes,
    sketch,
)


def words_of(text):
    return re.findall(r"\w+", text.casefold()) or [text.casefold()]


def shingles(text):
    words = words_of(text)
    return {tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))}


def jaccard(one, other):
    return len(shingles(one) & shingles(other)) / len(shingles(one) | shingles(other))


def near(texts, share):
    with tempfile.TemporaryDirectory() as folder:
        return mark_near_duplicates(texts, share, folder=Path(folder)).tolist()


texts = st.lists(
    st.lists(st.sampled_from(WORDS[:4]), min_size=0, max_size=9).map(" ".join), max_size=25
)


@settings(max_examples=50, deadline=None)
@given(texts, st.floats(0.1, 1))
def test_every_text_that_goes_is_near_one_that_stays(found, share):
    goes = near(found, share)
    for place, text in enumerate(found):
        if goes[place]:
            stay = [each for each, gone in zip(found[:place], goes, strict=False) if not gone]
            assert max(jaccard(text, each) for each in stay) >= share - 1e-9


@pytest.mark.parametrize("share", [0.5, 0.7, 0.9, 1.0])
def test_near_texts_are_those_that_comparing_all_with_all_finds(share):
    rng = random.Random(7)
    found = []
    for _ in range(400):
        words = rng.choices(WORDS, k=rng.randrange(1, 25))
        if found and rng.random() < 0.6:
            words = rng.choice(found).split()
            words[rng.randrange(len(words))] = rng.choice(WORDS)
        found.append(" ".join(words))
    kept = []
    for place, text in enumerate(found):
        if all(jaccard(text, found[other]) < share - 1e-9 for other in kept):
            kept.append(place)
    assert 20 < len(kept) < 380
    assert [place for place, goes in enumerate(near(found, share)) if not goes] == kept


def test_case_punctuation_and_shortness_are_compared_as_words():
    assert near(["Call the Bank, now!", "call the bank now", "Rest.", "rest", "!!", "!!", "?"], 1) \
        == [False, True, False, True, False, True, False]  # fmt: skip


@pytest.mark.slow
def test_tens_of_thousands_of_templated_tips_are_compared_in_seconds():
    tips = [
        f"Take a break of {n % 977} minutes and drink {n // 977} glasses before you call the bank"
        for n in range(30_000)
    ]
    assert not any(near(tips, 0.9))


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.8, 0.9, 0.99, 1.0])
def test_bands_miss_no_more_pairs_than_they_may_and_are_no_wider_than_needed(share):
    bands, rows = banding(share)
    assert bands * rows <= PERMUTATIONS
    if rows > 1:
        assert (1 - share**rows) ** bands <= MISSED
    wider = PERMUTATIONS // (rows + 1)
    assert rows == PERMUTATIONS or (1 - share ** (rows + 1)) ** wider > MISSED


def test_shingles_of_a_text_do_not_depend_on_its_neighbours():
    texts = ["one two three four", "", "rest", "one two three"]
    hashes, lengths = shingle_hashes(texts)
    assert lengths.tolist() == [2, 1, 1, 1]
    alone = [shingle_hashes([text])[0].tolist() for text in texts]
    assert hashes.tolist() == [each for own in alone for each in own]
    assert alone[0][0] == alone[3][0]


def test_the_share_of_equal_minima_estimates_the_jaccard_index():
    words = [f"w{n}" for n in range(60)]
    one, other = " ".join(words), " ".join([*words[:45], *(f"v{n}" for n in range(15))])
    first, second = sketch(*shingle_hashes([one, other]))
    expected = jaccard(one, other)
    spread = (expected * (1 - expected) / PERMUTATIONS) ** 0.5
    assert abs(np.mean(first == second) - expected) < 4 * spread


def test_no_text_and_one_text_repeat_nothing():
    assert near([], 0.9) == []
    assert near(["Take a walk."], 0.9) == [False]
