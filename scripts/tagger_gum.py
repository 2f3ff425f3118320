"""Sentences of GUM, the Georgetown University Multilayer corpus, with the names marked in them.

GUM marks whatever is mentioned, with a name or without one. A name is here what it tags as proper
nouns in a mention of a person, place or organisation, without titles (`President`). The corpus is
not in this repository: github.com/UniversalDependencies/UD_English-GUM, branch `dev`, has it;
the shipped weights learned from commit afb41ee9.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from tagger_sentences import JOBS

from reactune.pii.tagger import classes_of

Marked: TypeAlias = tuple[str, list[tuple[int, int, str]]]

# Genres that the corpus gives under CC BY or that are in the public domain (its LICENSE.txt).
OPEN_GENRES = ("news", "interview", "speech", "textbook", "vlog")
# From Wikipedia and Wikivoyage, which are CC BY-SA: to measure on, not to learn from.
WIKI_GENRES = ("bio", "voyage")
KIND_OF_TYPE = {"person": "PERSON", "place": "PLACE", "organization": "ORGANIZATION"}
BRACKET = re.compile(r"\((\d+)-([a-z]+)[^()]*(\))?|(\d+)\)")
WITHIN = {"of", "the", "and", "&", "-", "for", "de", "la", "del", "du", "van", "von", "al", "'s"}


@dataclass
class _Mention:
    kind: str
    first: int
    last: int = -1


@dataclass
class _Sentence:
    words: list[tuple[str, int, int, bool]] = field(default_factory=list)  # and whether proper
    mentions: list[_Mention] = field(default_factory=list)


def gum(folder: Path, genres: Sequence[str]) -> Iterator[Marked]:
    """The sentences of these genres in the order of the files' names."""
    sources = folder / "not-to-release" / "sources"
    for genre in genres:
        for file in sorted(sources.glob(f"GUM_{genre}_*.conllu")):
            yield from _sentences(file.read_text(encoding="utf-8"))


def _sentences(source: str) -> Iterator[Marked]:
    held: dict[str, list[_Mention]] = {}
    for block in source.split("\n\n"):
        lines = block.splitlines()
        text = next((line[9:] for line in lines if line.startswith("# text = ")), "")
        rows = [line.split("\t") for line in lines if line[:1].isdigit()]
        rows = [row for row in rows if row[0].isdigit()]
        if text and (sentence := _sentence(text, rows, held)):
            yield text, list(_names(sentence))


def _sentence(
    text: str, rows: Sequence[Sequence[str]], held: dict[str, list[_Mention]]
) -> _Sentence | None:
    """The words and mentions, or None for a text whose words are not found in it."""
    sentence, at = _Sentence(), 0
    held.clear()
    for number, row in enumerate(rows):
        start = text.find(row[1], at)
        if start < 0:
            return None
        at = start + len(row[1])
        # `States` belongs to `United States`, but `the Germans` is no name.
        is_plural = row[4] == "NNPS" and number > 0 and rows[number - 1][4] == "NNP"
        sentence.words.append((row[1], start, at, row[4] == "NNP" or is_plural))
        notes = dict(note.partition("=")[::2] for note in row[9].split("|"))
        for match in BRACKET.finditer(notes.get("Entity", "")):
            opened, kind, closes_at_once, closed = match.groups()
            if opened:
                mention = _Mention(kind, number)
                sentence.mentions.append(mention)
                held.setdefault(opened, []).append(mention)
            key = opened if closes_at_once else closed
            if key and held.get(key):
                held[key].pop().last = number
    return sentence


def _names(sentence: _Sentence) -> Iterator[tuple[int, int, str]]:
    kinds = [""] * len(sentence.words)
    unit = [-1] * len(sentence.words)
    # Long mentions first, so that the innermost counts; whole names last, the longest of them last.
    whole = [m for m in sentence.mentions if m.kind != "person" and _is_whole(sentence, m)]
    order = sorted((m for m in sentence.mentions if m.last >= 0), key=lambda m: m.first - m.last)
    for number, mention in enumerate([*order, *sorted(whole, key=lambda m: m.last - m.first)]):
        first = mention.first
        is_whole = number >= len(order)
        while is_whole and not sentence.words[first][3]:
            first += 1
        for at in range(first, mention.last + 1):
            if is_whole or sentence.words[at][3]:
                kinds[at], unit[at] = KIND_OF_TYPE.get(mention.kind, ""), number
            else:
                kinds[at], unit[at] = "", number
    at = 0
    while at < len(kinds):
        while kinds[at] == "PERSON" and _is_title(sentence.words[at][0]) and at + 1 < len(kinds):
            at += 1
        end = at + 1
        while kinds[at] and end < len(kinds) and kinds[end] and unit[end] == unit[at]:
            end += 1
        if kinds[at] and not (kinds[at] == "PERSON" and _is_title(sentence.words[end - 1][0])):
            yield sentence.words[at][1], sentence.words[end - 1][2], kinds[at]
        at = end


def _is_title(word: str) -> bool:
    return "t" in classes_of(word.casefold()) or word.casefold() in JOBS


def _is_whole(sentence: _Sentence, mention: _Mention) -> bool:
    """Whether the mention is one name, such as `the University of Oregon`."""
    words = sentence.words[mention.first : mention.last + 1]
    return (
        bool(words)
        and words[-1][3]
        and all(proper or word.lower() in WITHIN for word, _, _, proper in words)
    )
