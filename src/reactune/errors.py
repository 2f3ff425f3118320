"""What can go wrong: every message says what is wrong, with the value, and what to do next.

Ordinary states (too few examples, an empty day) are values, not errors. No message shows a
password that stands in a URL.
"""

import re
from urllib.parse import unquote

# `user:password@`. A password ends before the last `@`, for not everybody encodes `@` and `/`.
USER_INFO = re.compile(r"(?<=://)([^/?#@:\s]*):(?:(?!://)\S)*@")
NOT_A_PORT = re.compile(r"(?<=://)([^/?#@:\s]*):(?!\d{1,5}[/?#])(?:(?!://)\S)*@")
QUERY = re.compile(r"(?<=[?&;])([^=&?;\s]+)=[^&\s]*")
SECRET_NAME = re.compile(r"pass|pwd|secret|token|key|credential|\bsig", re.IGNORECASE)
# A connection string of libpq, and a dictionary that somebody printed.
KEYWORD = re.compile(r"\b((?:ssl)?passw(?:or)?d\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&]+)", re.IGNORECASE)
ITEM = re.compile(r"""((["'])\w*(?:passw(?:or)?d|secret|token)\2\s*:\s*)(["']).*?\3""", re.I)


class ReactuneError(Exception):
    """Anything reactune refuses to do; the command line prints it as one line."""

    def __init__(self, message: str) -> None:
        super().__init__(hide_passwords(message))


class ConfigError(ReactuneError):
    """A setting is missing, unknown or out of range."""


class DataError(ReactuneError):
    """Rows, files or the database do not hold what they must."""


class AwayError(DataError):
    """The database does not answer, is full or stays locked; what was to be written was not."""


class PrivacyError(ReactuneError):
    """Continuing would expose a user or break a promise to one."""


class TrainingError(ReactuneError):
    """The trainer could not start, or ended without an adapter."""


class ReleaseError(ReactuneError):
    """A model cannot be exported, proven, registered or served."""


class CanaryError(ReactuneError):
    """A rollout cannot be opened, compared or decided."""


def hide_passwords(text: str) -> str:
    """The text with `***` in place of every password, token and key of a URL in it.

    Whatever is doubtful is hidden: the user name before an `@` stays, what stands between is gone.
    """
    if "@" not in text and "=" not in text and ":" not in text:
        return text
    text = NOT_A_PORT.sub(r"\1:***@", text)
    text = QUERY.sub(_without_value, text)
    text = USER_INFO.sub(r"\1:***@", text)
    text = KEYWORD.sub(r"\1***", text)
    return ITEM.sub(r"\1\3***\3", text)


def _without_value(parameter: re.Match[str]) -> str:
    name = parameter[1]
    return f"{name}=***" if SECRET_NAME.search(unquote(name)) else parameter[0]
