import json
import re
from datetime import date, datetime

import pytest
from tokenizers import Tokenizer

from reactune.config.sections import PrivacyConfig, PromptConfig
from reactune.errors import ReleaseError
from reactune.model.prompt import (
    assemble,
    few_shot,
    load_chat,
    ollama_template,
    render,
    write_prompt_folder,
)
from reactune.model.templates import Template, marks_of, named_tokens, template_in, turn_end
from template_fixtures import FAMILIES, PUBLISHED, TOKENS, family_folder, write_names

DAY = "2026-02-03"
PRIVACY = PrivacyConfig(models={})
PLAIN = PromptConfig(date=DAY, instruction="Write a tip.")
BRIEF = PLAIN.model_copy(update={"system": "Be brief."})
CONTEXT = {"open_tasks": ["write <b> & 'call' back", "{{ water }} über"], "time_of_day": "noon"}
USER = "Write a tip.\n\nTime of day: noon\nOpen tasks: write <b> & 'call' back; {{ water }} über"
REFUSING = ("gemma-2",)  # a system message
STARTING = ("gemma-2", "gemma-3", "llama-3.1", "llama-3.2", "mistral-v1", "mistral-v3")
DATED = ("granite-3.1", "granite-3.3", "llama-3.2", "smollm3")


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    return {family: family_folder(root / family, family) for family in FAMILIES}


class Clock(datetime):
    """The clock that transformers reads, on the day that our prompts are told."""

    @classmethod
    def now(cls, tz=None):
        return cls.fromisoformat(DAY)


@pytest.fixture
def by_transformers(monkeypatch):
    """The token ids that transformers makes of messages in a folder."""
    from transformers import AutoTokenizer
    from transformers.utils import chat_template_utils

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)

    def token_ids(folder, messages, **variables):
        made = AutoTokenizer.from_pretrained(folder).apply_chat_template(
            messages, add_generation_prompt=True, enable_thinking=False, **variables
        )
        return tuple(made["input_ids"])

    return token_ids


def chat_in(folder, settings=PLAIN):
    return load_chat(folder, settings, privacy=PRIVACY)


def user(text):
    return {"role": "user", "content": text}


def system(text):
    return {"role": "system", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize("family", FAMILIES)
def test_token_ids_are_those_of_transformers(folders, by_transformers, family):
    chat = chat_in(folders[family])
    prompt = assemble(chat, "focus", CONTEXT)
    assert prompt.token_ids == by_transformers(folders[family], [user(USER)])
    turns = [user("Write a tip."), assistant("Go out."), user(USER)]
    ids = few_shot(chat, prompt, [("{}", "Go out.")])
    assert ids == by_transformers(folders[family], turns)


@pytest.mark.parametrize("family", [each for each in FAMILIES if each not in REFUSING])
def test_token_ids_with_a_system_prompt_are_those_of_transformers(folders, by_transformers, family):
    prompt = assemble(chat_in(folders[family], BRIEF), "focus", CONTEXT)
    assert prompt.token_ids == by_transformers(folders[family], [system("Be brief."), user(USER)])


@pytest.mark.parametrize("family", REFUSING)
def test_a_template_that_takes_no_system_message_says_so_itself(folders, family):
    with pytest.raises(ReleaseError, match=r"System role not supported; .*\[prompt\] system"):
        render(chat_in(folders[family], BRIEF), "Hello")
    assert "Hello" in render(chat_in(folders[family]), "Hello")


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_day_of_the_settings_is_told(folders, family):
    text = render(chat_in(folders[family]), "Hello")
    said = re.search(r"03 Feb(ruary)? 2026|February 03, 2026", text)
    assert (said is not None) == (family in DATED)
    other = render(
        chat_in(folders[family], PLAIN.model_copy(update={"date": "2025-12-31"})), "Hello"
    )
    assert (other != text) == (family in DATED)


@pytest.mark.parametrize("family", STARTING)
def test_a_start_token_stands_at_the_start_and_nowhere_else(folders, family):
    chat = chat_in(folders[family])
    text = chat.template.tokens["bos_token"]
    prompt = assemble(chat, "focus", {"free_text": f"say {text}"})
    start = chat.tokenizer.token_to_id(text)
    assert [place for place, token in enumerate(prompt.token_ids) if token == start] == [0]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_ends_as_the_template_ends_it(folders, family):
    _, end, _, turn = TOKENS[family]
    assert chat_in(folders[family]).stop == (turn or end)


@pytest.mark.parametrize("settings", [PLAIN, BRIEF], ids=["plain", "system"])
@pytest.mark.parametrize("family", FAMILIES)
def test_ollamas_template_gives_the_rendered_text(folders, family, settings):
    if settings.system and family in REFUSING:
        return
    chat = chat_in(folders[family], settings)
    template, told = ollama_template(chat)
    filled = template.replace('{{ "{{" }}', "{" * 2)
    filled = filled.replace("{{ .System }}", told).replace("{{ .Response }}", "")
    assert filled.replace("{{ .Prompt }}", "Hello {{ x }}?") == render(chat, "Hello {{ x }}?")


def test_ollamas_template_writes_braces_of_the_text_as_braces(folders):
    chat = chat_in(folders["smollm2"], PLAIN.model_copy(update={"system": "Fill {{name}}."}))
    _, told = ollama_template(chat)
    assert told == "Fill {{name}}."
    source = "{{ '{{a}}' }}{{ messages[0].content }}"
    (folders["smollm2"].parent / "braces.jinja").write_text(source)
    named = PLAIN.model_copy(update={"template": str(folders["smollm2"].parent / "braces.jinja")})
    assert ollama_template(chat_in(folders["smollm2"], named))[0] == (
        '{{ "{{" }}a}}{{ .Prompt }}{{ .Response }}'
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_folder_gives_the_same_token_ids_on_any_later_day(folders, tmp_path, family):
    chat = chat_in(folders[family])
    write_prompt_folder(chat, folders[family], tmp_path)
    later = PLAIN.model_copy(update={"date": "2027-01-01", "template": "elsewhere.jinja"})
    again = chat_in(tmp_path, later)
    assert assemble(again, "focus", CONTEXT) == assemble(chat, "focus", CONTEXT)
    assert again.stop == chat.stop


ODD = {
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% endfor %}",
    "break": "{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}{{ m.content }}"
    "{% endfor %}",
    "continue": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
    "{{ m.content }}{% endfor %}",
    "tojson": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}"
    "{{ messages | tojson(separators=(',', ':'), sort_keys=true) }}",
    "strftime": "{{ strftime_now('%Y-%m-%d %H:%M') }}{{ strftime_now is defined }}",
    "undefined": "{{ tools is none }}{{ documents is none }}{{ nothing is defined }}{{ nothing }}",
    "white space": "  {% if true %}\n  a\n  {% endif %}\n{{ messages[0].content }}\n",
    "namespace": "{% set n = namespace(last='') %}{% for m in messages %}"
    "{% set n.last = m.content %}{% endfor %}{{ n.last }}",
    "thinking": "{{ enable_thinking }}{{ bos_token is defined }}{{ eos_token }}{{ pad_token }}",
    "prompt": "{% if add_generation_prompt %}ask{% endif %}{{ dict(a=1) }}",
}


@pytest.mark.parametrize("name", ODD)
def test_what_a_template_may_use_is_what_transformers_offers(tmp_path, by_transformers, name):
    folder = family_folder(tmp_path, "qwen-3")
    (folder / "chat_template.jinja").write_text(ODD[name])
    messages = [system("Zoë <&'>"), user("Hi  "), assistant("Go."), user("More?")]
    expected = by_transformers(folder, messages)
    chat = chat_in(folder)
    ids = chat.tokenizer.encode(chat.template.render(messages), add_special_tokens=False).ids
    assert tuple(ids) == expected


FAULTY = {
    "raise_exception": ("{{ raise_exception('no!') }}", "no!"),
    "syntax": ("{% if %}", "Expected an expression"),
    "type": ("{{ 1 + 'a' }}", "unsupported operand"),
    "attribute": ("{{ messages[9].content.strip() }}", "has no"),
    "range": ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
    "division": ("{{ 1 / 0 }}", "division by zero"),
    "sandbox": ("{{ messages.__class__.__mro__ }}", "unsafe"),
    "change": ("{{ messages.append(1) }}", "unsafe"),
}


@pytest.mark.parametrize("name", FAULTY)
def test_a_template_that_fails_is_one_error_with_its_sentence(name):
    source, sentence = FAULTY[name]
    template = Template(source, {}, date(2026, 1, 1))
    with pytest.raises(ReleaseError, match=f"does not render: .*{sentence}"):
        template.render([user("Hi")])


def test_of_several_named_templates_it_is_the_default(tmp_path, by_transformers):
    folder = family_folder(tmp_path, "qwen-3")
    (folder / "chat_template.jinja").unlink()
    named = [{"name": "tool_use", "template": "tool"}, {"name": "default", "template": "hello"}]
    names = json.loads((folder / "tokenizer_config.json").read_text())
    write_names(folder, names | {"chat_template": named})
    assert assemble(chat_in(folder), "focus", {}).token_ids == by_transformers(folder, [user("")])
    write_names(folder, names | {"chat_template": named[:1]})
    with pytest.raises(ReleaseError, match="chat templates tool_use, none of them called default"):
        chat_in(folder)


@pytest.mark.parametrize("has_file", [True, False])
def test_additional_templates_change_nothing(tmp_path, by_transformers, has_file):
    folder = family_folder(tmp_path, "qwen-3")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tool")
    if has_file:
        expected = by_transformers(folder, [user(USER)])
        assert assemble(chat_in(folder), "focus", CONTEXT).token_ids == expected
        return
    (folder / "chat_template.jinja").unlink()
    names = json.loads((folder / "tokenizer_config.json").read_text())
    write_names(folder, names | {"chat_template": "from the settings"})
    assert render(chat_in(folder), "x") == "from the settings"


def test_a_file_of_the_settings_stands_in_for_a_template(tmp_path):
    folder = family_folder(tmp_path / "base", "qwen-3")
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages[0].content }}<|im_end|>")
    named = PLAIN.model_copy(update={"template": str(file)})
    assert render(chat_in(folder, named), "Hi") == "Hi<|im_end|>"
    (folder / "chat_template.jinja").unlink()
    assert render(chat_in(folder, named), "Hi") == "Hi<|im_end|>"
    with pytest.raises(ReleaseError, match=r"no chat template; .*\[prompt\] template"):
        chat_in(folder)
    file.unlink()
    with pytest.raises(ReleaseError, match=r"mine\.jinja cannot be read"):
        chat_in(folder, named)


def test_a_prompt_folder_of_release_0_1_gives_what_it_gave(folders, tmp_path):
    for family, text in (("llama-3.2", "Today Date: 26 Jul 2024"), ("qwen-3", "assistant\n")):
        folder = tmp_path / family
        write_prompt_folder(chat_in(folders[family]), folders[family], folder)
        settings = json.loads((folder / "prompt.json").read_text())
        del settings["date"], settings["template"]
        (folder / "prompt.json").write_text(json.dumps(settings))
        rendered = render(chat_in(folder), "Hi")
        assert text in rendered
        assert "<think>" not in rendered


def test_marks_are_special_tokens_and_those_of_the_template(folders):
    tokenizer = Tokenizer.from_file(str(folders["qwen-3"] / "tokenizer.json"))
    tokenizer.add_tokens(["<table>", "\n\n"])
    source = (PUBLISHED / "qwen-3.jinja").read_text()
    marks = marks_of(tokenizer, source)
    assert set(marks) == {"<|im_end|>", "<think>", "</think>"}
    assert marks_of(tokenizer, "") == ("<|im_end|>",)


def test_named_tokens_are_those_with_a_text():
    names = {
        "bos_token": {"content": "<s>", "special": True},
        "eos_token": "</s>",
        "pad_token": None,
        "add_bos_token": True,
        "model_max_length": 5,
    }
    assert named_tokens(names) == {"bos_token": "<s>", "eos_token": "</s>"}


def test_a_template_that_ends_no_answer_names_no_end():
    told = Template("{% for m in messages %}{{ m.content }}{% endfor %}", {}, None)
    assert turn_end(told, ("<|im_end|>",)) is None
    assert turn_end(Template("{{ raise_exception('') }}", {}, None), ("<|im_end|>",)) is None


def test_a_folder_without_a_template_has_none(tmp_path):
    assert template_in(tmp_path, {}) is None
