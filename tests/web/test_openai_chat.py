"""The OpenAI-compatible endpoint, called with OpenAI's own client over a real socket."""

import pytest

from reactune.config.sections import ModelConfig
from reactune.model.files import base_model
from reactune.model.prompt import load_chat
from reactune.service.state import close_service
from reactune.store.database import create_store
from reactune.web.api import create_app
from serving_fixtures import (
    PROMPTS,
    ModelServer,
    fails,
    listening,
    rows_of,
    service_of,
    set_champion,
)

openai = pytest.importorskip("openai")
USER = {"x-reactune-user": "u-7-raw"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A served store, the model server behind it, and OpenAI's client with our base URL."""
    engine = create_store(f"sqlite:///{tmp_path_factory.mktemp('chat') / 'store.db'}")
    set_champion(engine)
    model = ModelServer({1: "Write to <EMAIL_1> first."})
    service = service_of(engine, load_chat(base_model(ModelConfig()).folder, PROMPTS), model)
    app = create_app(service)
    with (
        listening(app) as address,
        openai.OpenAI(
            base_url=f"{address}/v1", api_key="none", default_headers=USER, max_retries=0
        ) as client,
    ):
        yield engine, model, client
    close_service(service)
    engine.dispose()


ASKED = [
    {"role": "system", "content": "You help."},
    {"role": "user", "content": "Mail anna@example.com today?"},
]


def ask(client, **more):
    return client.chat.completions.create(
        **{"model": "any", "messages": ASKED, "temperature": 0.3, **more}
    )


def test_openais_client_gets_a_tip_that_is_recorded_without_its_address(place):
    engine, _, client = place
    answer = ask(client)
    assert answer.choices[0].message.content == "Write to anna@example.com first."
    assert (answer.choices[0].finish_reason, answer.object) == ("stop", "chat.completion")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    row = {row["tip_id"]: row for row in rows_of(engine)}[answer.id]
    assert (row["kind"], row["tip_content"]) == ("chat", "Write to <EMAIL_1> first.")
    assert "anna@" not in row["context_json"]
    assert "user: Mail <EMAIL_1> today? system: You help." in row["context_json"]


def test_a_stream_gives_the_same_text_in_pieces(place):
    engine, _, client = place
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == "Write to anna@example.com first."
    assert sum(map(bool, pieces)) > 1
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.total_tokens > 0
    assert chunks[0].id in {row["tip_id"] for row in rows_of(engine)}


def test_the_user_may_stand_in_the_body_and_the_kind_in_a_header(place):
    engine, _, client = place
    named = client.with_options(default_headers={"x-reactune-kind": "focus"})
    answer = ask(named, user="u-8", messages=[ASKED[1]])
    row = {row["tip_id"]: row for row in rows_of(engine)}[answer.id]
    assert row["kind"] == "focus"
    assert '"free_text":"Mail <EMAIL_1> today?"' in row["context_json"]


@pytest.mark.parametrize(
    "more",
    [
        {"n": 2},
        {"messages": []},
        {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
    ],
)
def test_what_would_not_be_a_tip_is_refused_in_openais_form(place, more):
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        ask(place[2], **more)
    assert refused.value.body["type"] == "reactune_error"


def test_nobodys_tip_is_refused(place):
    nobody = place[2].with_options(set_default_headers={})
    with pytest.raises(openai.UnprocessableEntityError, match="x-reactune-user"):
        ask(nobody)


def test_when_no_model_answers_openais_client_is_told_to_try_again(place):
    _, model, client = place
    before, model.answers[1] = model.answers[1], fails
    try:
        with pytest.raises(openai.InternalServerError) as refused:
            ask(client, stream=True)
    finally:
        model.answers[1] = before
    assert refused.value.status_code == 503
    assert refused.value.response.headers["retry-after"] == "1"
