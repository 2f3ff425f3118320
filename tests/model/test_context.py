import json

import pytest

from reactune.errors import DataError
from reactune.model.context import context_to_log, parse_context


def test_a_logged_context_is_parsed_once_and_written_as_it_was():
    parts = {"free_text": "ärgerlich", "open_tasks": ["a", "b"]}
    logged = parse_context(context_to_log(parts))
    assert (logged.parts, logged.is_assembled) == (parts, True)
    assert context_to_log(logged.parts) == logged.text
    assert logged.text == '{"context":{"free_text":"ärgerlich","open_tasks":["a","b"]},"v":1}'


@pytest.mark.parametrize(
    "text",
    ['{"v": 1, "context": {}, "more": 1}', '{"context": {}}', '{"v": 1}', "{}"],
)
def test_a_context_of_another_app_is_taken_as_it_is(text):
    logged = parse_context(text)
    assert (logged.parts, logged.is_assembled) == (json.loads(text), False)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (None, "not JSON; log a JSON object"),
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('["a"]', "JSON list; log a JSON object"),
        ('{"v": 2, "context": {}}', "version 2, this release reads 1; install the release"),
        ('{"v": 1, "context": []}', "no JSON object; log what"),
    ],
)
def test_a_context_that_cannot_be_read_is_refused_with_what_to_do(text, wrong):
    with pytest.raises(DataError, match=wrong):
        parse_context(text)


def test_logged_contexts_are_equal_if_their_texts_are():
    one, same = parse_context('{"a": 1}'), parse_context('{"a": 1}')
    assert one == same
    assert len({one, same, parse_context('{"a":1}')}) == 2
