"""What the tagger is trained on is the same on every run, so that the weights can be rebuilt."""

import importlib
from datetime import datetime
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def made_on(monkeypatch):
    """Sentences that are made on a day of some year."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    module = importlib.import_module("tagger_sentences")

    def made(year):
        class Then(datetime):
            @classmethod
            def now(cls, tz=None):
                return cls(year, 5, 17, 12, tzinfo=tz)

        monkeypatch.setattr("faker.providers.date_time.datetime", Then)
        module.faker.cache_clear()
        return list(module.sentences(400, seed=11))

    return made


def test_the_sentences_are_the_same_on_every_day(made_on):
    assert made_on(2024) == made_on(2031)
