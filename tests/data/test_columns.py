"""Which columns are ours, and names that are nearly ours."""

import pytest

from reactune.data.columns import match_columns
from reactune.errors import ConfigError, DataError

OURS = ("tip_id", "training_allowed", "shown_at", "reaction", "dwell_ms")


def match(*there, everywhere=None, **given):
    return match_columns(OURS, there, given, setting="[source] columns", everywhere=everywhere)


@pytest.mark.parametrize(
    "name", ["TRAINING_ALLOWED", "trainingAllowed", "Training Allowed", "training-allowed"]
)
def test_a_name_that_differs_in_case_and_separators_is_ours(name):
    assert match("tip_id", name) == {"tip_id": "tip_id", "training_allowed": name}


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("training_alowed", "training_allowed"), ("allowed_training", "training_allowed"),
        ("trainingConsent", "training_allowed"), ("consent", "training_allowed"),
        ("optOutOfTraining", "training_allowed"), ("is_training_allowed", "training_allowed"),
        ("do_not_train", "training_allowed"), ("excludeFromTraining", "training_allowed"),
        ("may_train_on", "training_allowed"), ("ai_opt_in", "training_allowed"),
        ("opted_out", "training_allowed"), ("OptOut", "training_allowed"),
        ("usable_for_ml", "training_allowed"), ("trainable", "training_allowed"),
        ("showed_at", "shown_at"), ("reactions", "reaction"), ("user_reaction", "reaction"),
        ("dwell", "dwell_ms"), ("dwellTimeSeconds", "dwell_ms"),
    ],
)  # fmt: skip
def test_a_name_that_is_nearly_ours_is_refused_with_the_one_that_was_meant(name, ours):
    with pytest.raises(DataError, match=f"no column {ours}, but {name}, which may be meant"):
        match("tip_id", name)
    assert match("tip_id", name, **{ours: name})[ours] == name
    assert ours not in match("tip_id", name, **{ours: ""})
    assert match("tip_id", name, ours)[ours] == ours


@pytest.mark.parametrize(
    "name",
    ["training_time", "allowed", "created_at", "reacted_at", "kind", "training_notes", "options",
     "train_split", "checked_out", "ml_score", "learning_rate", "candidate"],
)  # fmt: skip
def test_other_names_are_nobodys(name):
    assert match("tip_id", name) == {"tip_id": "tip_id"}


def test_a_mapping_to_a_column_that_is_nowhere_names_the_one_that_was_meant():
    with pytest.raises(ConfigError, match=r"maps reaction to reacton.*; reaction2 may be meant"):
        match("tip_id", "reaction2", reaction="reacton")
    one = match("tip_id", reaction="verdict", everywhere={"tip_id", "verdict"})
    assert one == {"tip_id": "tip_id"}


def test_two_names_for_one_column_are_refused():
    with pytest.raises(DataError, match="trainingAllowed and training_Allowed may both be"):
        match("trainingAllowed", "training_Allowed")
