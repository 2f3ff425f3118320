"""What a service needs to make a model's prompts, as files beside its GGUF.

How prompts are made is `prompt.py`'s.
"""

from pathlib import Path

from reactune.prompt import DETECTORS, Chat, detectors_of, render, render_messages


def ollama_template(chat: Chat) -> tuple[str, str]:
    """Ollama's Go template and system prompt that give the same text as `render`.

    Derived by rendering the chat template around marks: no list of known models is needed.
    """
    system_mark, user_mark = "SYSTEM-MARK", "USER-MARK"
    marked = render_messages(
        chat,
        [{"role": "system", "content": system_mark}, {"role": "user", "content": user_mark}],
    )
    before, _, rest = marked.partition(system_mark)
    between, _, after = rest.partition(user_mark)
    plain = render(chat, user_mark)
    head, _, tail = plain.partition(user_mark)
    if (
        system_mark in marked
        and head.startswith(before)
        and head.endswith(between)
        and tail == after
    ):
        system = head[len(before) : len(head) - len(between)]
        return (
            before + "{{ .System }}" + between + "{{ .Prompt }}" + after + "{{ .Response }}",
            system,
        )
    return head + "{{ .Prompt }}" + tail + "{{ .Response }}", ""


def write_prompt_folder(chat: Chat, model_folder: Path, out: Path) -> None:
    """Copy what a service needs to make this model's prompts, and Ollama's form of it."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (out / name).write_bytes((model_folder / name).read_bytes())
    template, system = ollama_template(chat)
    for name, text in (("ollama_template", template), ("system", system), ("stop", chat.stop)):
        (out / f"{name}.txt").write_text(text, encoding="utf-8")
    (out / "prompt.json").write_text(chat.settings.model_dump_json(indent=2), encoding="utf-8")
    (out / DETECTORS).write_text(detectors_of(chat.privacy), encoding="utf-8")
