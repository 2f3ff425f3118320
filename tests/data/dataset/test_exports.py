"""Pairs for DPO, and files of examples."""

import pytest

from dataset_fixtures import example
from reactune.data.dataset.exports import (
    EXAMPLES,
    PAIRS_PER_CONTEXT,
    dpo_rows,
    examples_schema,
    pairs,
    read_examples,
)
from reactune.errors import DataError


def test_pairs_share_kind_and_context_and_use_every_positive_before_repeating():
    found = [
        *(example(f"p{n}", f"good {n}") for n in range(5)),
        *(example(f"n{n}", f"bad {n}", label=False) for n in range(3)),
        example("other", "bad", label=False, context="c2"),
        example("kind", "bad", label=False, kind="sleep"),
    ]
    made = pairs(found)
    assert len(made) == PAIRS_PER_CONTEXT == len(set(made))
    assert {chosen.tip_id for chosen, _ in made[:5]} == {f"p{n}" for n in range(5)}
    assert {rejected.tip_id for _, rejected in made} == {"n0", "n1", "n2"}
    assert pairs(found[::-1]) == made
    first = next(dpo_rows(found))
    assert first == {"prompt": found[0].prompt, "chosen": "good 0", "rejected": "bad 0"}


def test_all_pairs_are_made_where_they_are_few():
    found = [example("a", "x"), example("b", "y"), example("c", "z", label=False)]
    assert {(one.tip_id, other.tip_id) for one, other in pairs(found)} == {("a", "c"), ("b", "c")}


def test_no_pair_joins_different_kinds_or_contexts():
    liked = [example("a", "Go.", kind="focus"), example("b", "Go.", context="c2")]
    disliked = [example("c", "No.", kind="sleep", label=False), example("d", "No.", label=False)]
    assert [(one.tip_id, other.tip_id) for one, other in pairs([*liked, *disliked])] == [("a", "d")]


def test_pairs_do_not_depend_on_the_order_of_examples():
    examples = [example(f"t{n}", f"tip {n}", label=n % 3 == 0) for n in range(9)]
    assert pairs(examples) == pairs(reversed(examples))


def test_a_pair_for_dpo_has_the_prompt_that_both_answered():
    liked, disliked = example("a", "Go."), example("b", "No.", label=False)
    assert list(dpo_rows([disliked, liked])) == [
        {"prompt": liked.prompt, "chosen": "Go.", "rejected": "No."}
    ]


def test_a_folder_without_a_dataset_names_the_stage_that_writes_it(tmp_path):
    with pytest.raises(DataError, match=rf"holds no {EXAMPLES}; the stage `dataset` writes it"):
        read_examples(tmp_path)


def test_the_columns_of_the_file_of_examples_do_not_change():
    assert examples_schema().names == [
        "tip_id", "user_key", "kind", "context_json", "instruction", "input", "prompt", "tip",
        "label", "dwell_ms", "created_at", "part",
    ]  # fmt: skip
