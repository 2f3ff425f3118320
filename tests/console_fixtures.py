"""What pages show in a console: their commands one by one, and a shell that runs them."""

import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib

from places import DOCS

OPERATORS = set("|&;()<>")


def blocks_of(page, language):
    """The fenced blocks of a page in this language, in their order."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands_of(page):
    """The commands of a page's consoles; one that goes on in the next line is one of them."""
    found = []
    for block in blocks_of(page, "console"):
        is_open = False
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append(line.removeprefix("$ "))
            elif is_open:
                found[-1] += f"\n{line}"
            is_open = (is_open or line.startswith("$ ")) and _goes_on(found[-1])
    return found


def _goes_on(command):
    """Whether the next line belongs to it: it ends with a backslash, or within quotes."""
    try:
        shlex.split(command)
    except ValueError:
        return True
    return False


def settings_of(page):
    """The sections that a page says to write into `reactune.toml`; a later block adds keys."""
    sections = {}
    for block in blocks_of(page, "toml"):
        for section, values in tomllib.loads(block).items():
            sections[section] = {**sections.get(section, {}), **values}
    return sections


def calls_of(command):
    """The words of each simple command in a line: without its variables and redirections."""
    lexer = shlex.shlex(command.replace("\\\n", " "), posix=True, punctuation_chars="|&;()<>")
    lexer.whitespace_split = True
    words, calls, is_target = [], [], False
    for token in [*lexer, ";"]:
        if set(token) <= OPERATORS:
            is_target = token in (">", ">>", "<", ">&")
            if is_target and words and words[-1] in ("1", "2"):
                words.pop()  # The number of what is redirected.
            if not is_target and words:
                calls.append(words)
            words = words if is_target else []
        elif is_target:
            is_target = False
        elif words or not re.fullmatch(r"\w+=.*", token, flags=re.DOTALL):
            words.append(token)
    return calls


def run_in_shell(commands, folder, *, programs=None, seconds=600, **environment):
    """Run commands as one script in a folder; what they printed, with each command before it.

    `programs` are scripts that stand in for programs of another machine. What the commands leave
    running in the background ends with them.
    """
    stand_ins = folder / ".programs"
    stand_ins.mkdir()
    for name, script in (programs or {}).items():
        (stand_ins / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (stand_ins / name).chmod(0o755)
    path = f"{stand_ins}:{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    shell = ["bash", "-euxo", "pipefail", "-c", "\n".join(commands)]
    log = folder / ".console"
    with log.open("wb") as output:
        running = subprocess.Popen(
            shell, cwd=folder, env={**os.environ, "PATH": path, **environment},
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
        try:
            code = running.wait(seconds)
        finally:
            _end_group(running.pid)
            running.wait()
    printed = log.read_text(encoding="utf-8")
    assert code == 0, printed
    return printed


def _end_group(group):
    try:
        os.killpg(group, signal.SIGTERM)
    except ProcessLookupError:
        return  # Nothing was left in the background.
