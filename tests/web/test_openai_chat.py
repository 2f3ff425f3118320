"""The OpenAI-compatible endpoint, called with OpenAI's own client over a real socket."""

import asyncio
import json

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reactune.config.sections import ModelConfig
from reactune.errors import DataError
from reactune.model.files import base_model
from reactune.model.prompt import load_chat
from reactune.privacy.hashing import user_key
from reactune.service.state import close_service
from reactune.service.tips import Tip
from reactune.store.database import create_store
from reactune.web.api import create_app
from reactune.web.openai_chat import UNSUPPORTED, ChatBody, chat_answer, tip_request
from serving_fixtures import (
    KEY,
    PROMPTS,
    ModelServer,
    cut,
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


def test_a_stream_holds_the_same_text_in_pieces(place):
    engine, _, client = place
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == "Write to anna@example.com first."
    assert sum(map(bool, pieces)) > 1
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.total_tokens > 0
    assert chunks[0].id in {row["tip_id"] for row in rows_of(engine)}


def test_an_answer_that_was_cut_ends_by_its_length(place):
    engine, model, client = place
    whole = model.answers[1]
    model.answers[1] = cut("Go out. Then dri")
    try:
        answer, chunks = ask(client), list(ask(client, stream=True))
    finally:
        model.answers[1] = whole
    assert answer.choices[0].message.content == "Go out."
    assert answer.choices[0].finish_reason == "length"
    assert chunks[-1].choices[0].finish_reason == "length"
    assert {row["tip_id"]: row["cut"] for row in rows_of(engine)}[answer.id] is True


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
        {"tool_choice": "required"},
        {"response_format": {"type": "json_object"}},
        {"modalities": ["text", "audio"]},
        {"logprobs": True},
        {"top_logprobs": 2},
        {"messages": [{"role": "assistant", "content": None}]},
    ],
)
def test_what_would_not_be_a_tip_is_refused_in_openais_form(place, more):
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        ask(place[2], **more)
    assert refused.value.body["type"] == "reactune_error"


@pytest.mark.parametrize(
    "more",
    [
        {"n": 1, "tool_choice": "none", "tools": [], "response_format": {"type": "text"}},
        {"extra_body": dict.fromkeys(
            ["n", "user", "stream", "stop", "tools", "response_format", "logprobs", "audio"]
        )},
        {"logprobs": False, "modalities": ["text"]},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"},
        {"functions": [{"name": "f", "parameters": {}}], "function_call": "none"},
    ],
)  # fmt: skip
def test_fields_that_ask_for_nothing_more_than_a_text_are_taken(place, more):
    assert ask(place[2], **more).choices[0].message.content


def test_turns_of_tools_stay_in_the_history_and_those_without_text_are_left_out(place):
    engine, _, client = place
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "Mail anna@example.com?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    answer = ask(client, messages=messages)
    row = {row["tip_id"]: row for row in rows_of(engine)}[answer.id]
    assert "tool: rain user: Mail <EMAIL_1>?" in row["context_json"]


def test_the_list_of_models_has_the_one_name(place):
    assert [model.id for model in place[2].models.list()] == ["reactune"]


def test_a_model_is_found_by_its_name_and_no_other(place):
    assert place[2].models.retrieve("reactune").id == "reactune"
    with pytest.raises(openai.NotFoundError) as refused:
        place[2].models.retrieve("openai/gpt-4o")
    assert refused.value.body["message"] == "no model of this name; there is one, reactune"


def test_what_we_do_not_have_of_openais_paths_is_refused_with_the_path_to_take(place):
    address = str(place[2].base_url).rstrip("/")
    without, twice = (place[2].with_options(base_url=url)
                      for url in (address.removesuffix("/v1"), f"{address}/v1"))  # fmt: skip
    for call in (
        lambda: without.chat.completions.create(model="any", messages=ASKED, user="u"),
        lambda: twice.chat.completions.create(model="any", messages=ASKED, user="u"),
        lambda: place[2].embeddings.create(model="any", input="x"),
        lambda: place[2].responses.create(model="any", input="x"),
        lambda: place[2].completions.create(model="any", prompt="x"),
    ):
        with pytest.raises(openai.NotFoundError) as refused:
            call()
        reason = (
            "Not Found; /openapi.json lists the paths and their methods. OpenAI's clients ask with "
            "POST /v1/chat/completions: give them a base URL that ends in /v1, and choose chat "
            "completions"
        )
        assert refused.value.body["message"] == reason


CONTENT = "content: give a text of at most 20,000 characters, or 50 parts of type text"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([ASKED[1], {"role": "user", "content": 5}], f"messages[1].{CONTENT}"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "secret"}}]}],
         f"messages[0].{CONTENT}"),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], f"messages[0].{CONTENT}"),
        ([{"role": "user", "content": {"secret": 1}}], f"messages[0].{CONTENT}"),
        ([{"role": "secret", "content": "x"}], "messages[0].role: Input should be 'system',"),
        ([{"content": "x"}], "messages[0].role: Field required"),
        (["secret"], "messages[0]: "),
        ([], "messages: List should have at least 1 item"),
    ],
)  # fmt: skip
def test_a_refusal_says_which_message_is_wrong_and_not_what_was_in_it(place, messages, reason):
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        ask(place[2], messages=messages)
    said = refused.value.body["message"]
    assert said.startswith(reason)
    assert "secret" not in said
    assert said.count("messages") == 1


def test_a_kind_in_a_header_may_be_utf_8(place):
    answer = httpx.post(
        f"{place[2].base_url}chat/completions",
        headers={"x-reactune-user": "u-9", b"x-reactune-kind": "\u00fcbung".encode()},
        json={"messages": [ASKED[1]]},
    )
    row = {row["tip_id"]: row for row in rows_of(place[0])}[answer.json()["id"]]
    assert row["kind"] == "\u00fcbung"


@pytest.mark.parametrize(
    "header",
    [
        "zo\u00eb-7".encode(),
        "zoe\u0308-7".encode(),
        b"UTF-8''zo%C3%AB-7",
        b"utf-8'de'%20zo%C3%AB-7",
    ],
)
def test_a_user_in_a_header_is_the_same_person_as_in_a_body(place, header):
    engine, _, client = place
    address = str(client.base_url)
    message = {"model": "reactune", "messages": [ASKED[1]]}
    answer = httpx.post(
        f"{address}chat/completions", headers={b"x-reactune-user": header}, json=message
    )
    row = {row["tip_id"]: row for row in rows_of(engine)}[answer.json()["id"]]
    assert row["user_key"] == user_key(KEY, "zo\u00eb-7")


def test_a_user_in_a_header_that_is_not_utf_8_is_refused(place):
    message = {"model": "reactune", "messages": [ASKED[1]]}
    answer = httpx.post(
        f"{place[2].base_url}chat/completions",
        headers={b"x-reactune-user": b"zo\xeb"},
        json=message,
    )
    assert answer.status_code == 422
    assert "not UTF-8" in answer.json()["error"]["message"]


def test_a_request_without_a_user_is_refused(place):
    nobody = place[2].with_options(set_default_headers={})
    with pytest.raises(openai.UnprocessableEntityError, match="x-reactune-user"):
        ask(nobody)


def test_when_no_model_answers_openais_client_sees_503_and_retry_after(place):
    _, model, client = place
    before, model.answers[1] = model.answers[1], fails
    try:
        with pytest.raises(openai.InternalServerError) as refused:
            ask(client, stream=True)
    finally:
        model.answers[1] = before
    assert refused.value.status_code == 503
    assert refused.value.response.headers["retry-after"] == "1"


def body(*messages, **more):
    listed = [{"role": role, "content": text} for role, text in messages]
    return ChatBody(messages=listed, **more)


def test_one_message_is_the_context_as_it_is_and_several_come_newest_first():
    one = tip_request(body(("user", "Hello")), user="u", kind="chat")
    assert (one.user_id, one.kind, one.context) == ("u", "chat", {"free_text": "Hello"})
    system = tip_request(body(("system", "Be brief.")), user="u", kind="chat")
    assert system.context == {"free_text": "system: Be brief."}
    several = [("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi"), ("user", "Bye")]
    text = tip_request(body(*several), user="u", kind="chat").context["free_text"]
    assert text == "user: Bye\nassistant: Hi\nuser: Hello\nsystem: Be brief."


def test_a_message_of_several_text_parts_is_one_text():
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    request = tip_request(body(("user", parts)), user="u", kind="chat")
    assert request.context == {"free_text": "one\ntwo"}


def test_a_models_refusal_in_the_history_says_nothing():
    refused = [{"type": "refusal", "refusal": "No."}]
    listed = body(("user", "Hello"), ("assistant", refused), ("user", "And now?"))
    assert tip_request(listed, user="u", kind="chat").context == {
        "free_text": "user: And now?\nuser: Hello"
    }


def test_the_user_of_the_header_comes_before_that_of_the_body():
    assert tip_request(body(("user", "x"), user="b"), user="h", kind="chat").user_id == "h"
    later = body(("user", "x"), user="b", safety_identifier="s")
    assert tip_request(later, user="", kind="chat").user_id == "b"
    later = body(("user", "x"), safety_identifier="s")
    assert tip_request(later, user="", kind="chat").user_id == "s"
    with pytest.raises(DataError, match="no user: give the header x-reactune-user"):
        tip_request(body(("user", "x")), user="", kind="chat")


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_an_option_that_a_tip_does_not_support_is_named(name):
    with pytest.raises(DataError, match=f"{name}: a tip is one text; leave that out"):
        tip_request(body(("user", "x"), **{name: [1]}), user="u", kind="chat")
    # Clients send the empty defaults of options that they do not use.
    for unused in (None, [], False):
        tip_request(body(("user", "x"), **{name: unused}), user="u", kind="chat")


@pytest.mark.parametrize("kind", ["", " chat", "a\nb", "a\n", "k" * 101, "x;y"])
def test_a_kind_that_is_none_is_refused(kind):
    with pytest.raises(DataError, match="x-reactune-kind: letters"):
        tip_request(body(("user", "x")), user="u", kind=kind)


def events_of(response):
    async def read():
        return [event async for event in response.body_iterator]

    return [event.removeprefix("data: ").rstrip("\n") for event in asyncio.run(read())]


@given(content=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80))
def test_the_pieces_of_a_stream_are_the_whole_text(content):
    response = chat_answer(body(("user", "x"), stream=True), Tip("t1", f"a{content}b"))
    *chunks, done = events_of(response)
    deltas = [json.loads(chunk)["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("content", "") for delta in deltas) == f"a{content}b"
    assert (done, json.loads(chunks[-1])["choices"][0]["finish_reason"]) == ("[DONE]", "stop")
    assert {json.loads(chunk)["id"] for chunk in chunks} == {"t1"}


def test_usage_is_streamed_only_where_it_is_wanted():
    tip = Tip("t1", "A tip.", prompt_tokens=40, tokens=3)
    plain = events_of(chat_answer(body(("user", "x"), stream=True), tip))
    wanted = body(("user", "x"), stream=True, stream_options={"include_usage": True})
    *_, usage, _ = events_of(chat_answer(wanted, tip))
    assert all('"usage"' not in event for event in plain)
    assert json.loads(usage)["usage"] == {
        "prompt_tokens": 40, "completion_tokens": 3, "total_tokens": 43,
    }  # fmt: skip


@pytest.mark.parametrize("stream", [True, False])
def test_a_header_reports_a_tip_that_is_not_recorded(stream):
    for recorded, header in ((True, None), (False, "false")):
        tip = Tip("t1", "A tip.", recorded=recorded)
        response = chat_answer(body(("user", "x"), stream=stream), tip)
        assert response.headers.get("x-reactune-recorded") == header
