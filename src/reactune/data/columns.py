"""Which columns of a file or a table are ours: by their name, or by what the settings say.

A column whose name is nearly one of ours is refused, as to overlook it may mean to learn from
somebody who refused.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from difflib import SequenceMatcher

from reactune.errors import ConfigError, DataError

CONSENT = "training_allowed"
WATCHED = (CONSENT, "shown_at", "reaction", "dwell_ms")
"""Columns of ours for which names that are nearly theirs are refused."""
SIMILAR = 0.8
WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
CONSENT_WORDS = (
    "allow", "consent", "permi", "opt", "agree", "refus", "exclu", "forb", "deni", "disallow",
    "prohibit", "usable", "eligib",
)  # fmt: skip
WHOLE_CONSENT_WORDS = {"ok", "may", "can", "no", "not", "deny", "block", "blocked"}
TRAINING_WORDS = ("train", "learn")
MODELS = {"ai", "ml", "llm"}


def match_columns(
    ours: Iterable[str],
    there: Collection[str],
    given: Mapping[str, str],
    *,
    setting: str,
    everywhere: Collection[str] | None = None,
) -> dict[str, str]:
    """Our column name = the name it has there, for every column of ours that is there.

    `given` is the mapping of the settings; an empty name says that there is no such column. Other
    columns are ours if their names differ in case and separators only (`trainingAllowed`).
    `everywhere` are the columns of all files, where `there` are those of one.

    Raises:
        ConfigError: `given` names a column that is nowhere.
        DataError: two columns may be the same one of ours, or the name of one is nearly ours.
    """
    mine = tuple(ours)
    everywhere = there if everywhere is None else everywhere
    _check_given(mine, everywhere, given, setting)
    taken = set(given.values()) | {name for name in mine if name not in given}
    matched: dict[str, str] = {}
    for name in mine:
        if name in given:
            alike = [given[name]] if given[name] in there else []
        elif name in there:
            alike = [name]
        else:
            alike = [each for each in there if each not in taken and _folded(each) == _folded(name)]
        if len(alike) > 1:
            raise DataError(
                f"columns {' and '.join(sorted(alike))} may both be {name}; name one of them in "
                f"{setting}"
            )
        if alike:
            matched[name] = alike[0]
        elif name in WATCHED and name not in given:
            _refuse_near_misses(name, set(there) - taken - set(matched.values()), setting)
    return matched


def _check_given(
    mine: Iterable[str], everywhere: Collection[str], given: Mapping[str, str], setting: str
) -> None:
    for name in mine:
        column = given.get(name, "")
        if not column or column in everywhere or not everywhere:
            continue
        alike = [each for each in everywhere if _is_alike(_folded(column), _folded(each))]
        meant = f"; {' or '.join(sorted(alike))} may be meant" if alike else ""
        raise ConfigError(
            f"{setting} maps {name} to {column}, but there is no such column{meant}; there are "
            f"{', '.join(sorted(everywhere))}"
        )


def _refuse_near_misses(name: str, others: Iterable[str], setting: str) -> None:
    near = sorted(each for each in others if _is_near(name, each))
    if near:
        raise DataError(
            f"there is no column {name}, but {' and '.join(near)}, which may be meant: rename it, "
            f'or name it in {setting}, {{ {name} = "{near[0]}" }}; if there is none, '
            f'{{ {name} = "" }}'
        )


def _is_near(name: str, other: str) -> bool:
    words = [word.casefold() for word in WORDS.findall(other)]
    if _is_alike(_folded(name), _folded(other)) or sorted(words) == sorted(name.split("_")):
        return True
    if name == "dwell_ms":
        return "dwell" in words
    if name == CONSENT:
        has_consent = any(word.startswith(CONSENT_WORDS) for word in words)
        has_consent = has_consent or not WHOLE_CONSENT_WORDS.isdisjoint(words)
        is_about_training = any(word.startswith(TRAINING_WORDS) for word in words)
        is_about_training = is_about_training or not MODELS.isdisjoint(words)
        is_opt_out = {"out", "optout"} & set(words) and any(w.startswith("opt") for w in words)
        is_plain = bool(is_opt_out) or not {"consent", "trainable"}.isdisjoint(words)
        return (has_consent and is_about_training) or is_plain
    return False


def _is_alike(one: str, other: str) -> bool:
    return SequenceMatcher(None, one, other).ratio() >= SIMILAR


def _folded(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()
