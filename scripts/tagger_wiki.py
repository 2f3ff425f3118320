"""Sentences of encyclopedic texts with the names that people marked in them: CrossNER and DocRED.

Neither corpus is in this repository. The shipped weights learned from CrossNER
(github.com/zliucr/CrossNER, commit 2e7ba2a) but for its folder `conll2003`, which is not free; from
the development and test documents of Re-DocRED (github.com/tonytan48/Re-DocRED, commit ccfb54f),
and from DocRED's own test documents (github.com/thunlp/DocRED; the copy in
github.com/Hytn/DocRED-HWE was read), in one folder.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tagger_sentences import Marked

from reactune.pii.tagger import classes_of

Words = list[tuple[str, str]]  # words of a sentence and what is marked: `B-person`, `I-person`, `O`

SUBJECTS = ("ai", "literature", "music", "politics", "science")
PARTS = ("train", "dev", "test")
DOCUMENTS = ("dev_revised.json", "test_revised.json", "test.json")
KIND_OF_LABEL = {
    **dict.fromkeys(
        ("person", "politician", "writer", "musicalartist", "scientist", "researcher"), "PERSON"
    ),
    **dict.fromkeys(("location", "country"), "PLACE"),
    **dict.fromkeys(("organisation", "politicalparty", "university", "band"), "ORGANIZATION"),
    "astronomicalobject": "?",
    "PER": "PERSON", "LOC": "PLACE", "ORG": "ORGANIZATION",
}  # all other labels are no names to us: works, prizes, elections, times  # fmt: skip
FIRST_NAMES, NATIONALITIES = set("Ff"), "g"  # letters of the lexicon
ENDS = {".", ",", ";", ":", "?", "!", ")", "]", "%", "n't"}  # no space stands before
BEGINNINGS = {"(", "[", "$", "£", "€"}  # no space stands behind
JOINTS = {"-", "/"}  # neither before nor behind


def crossner(folder: Path, subjects: Sequence[str] = SUBJECTS) -> Iterator[Marked]:
    """The sentences of these subjects, each once, written as people write."""
    seen = set()
    for subject in subjects:
        for part in PARTS:
            text = (folder / "ner_data" / subject / f"{part}.txt").read_text(encoding="utf-8")
            for block in text.split("\n\n"):
                rows = [line.split("\t") for line in block.splitlines() if "\t" in line]
                sentence = written([(word, label) for word, label in rows])
                if sentence[0] and sentence[0] not in seen:
                    seen.add(sentence[0])
                    yield sentence


def docred(folder: Path) -> Iterator[Marked]:
    """The sentences of DocRED's documents in these files, written as people write."""
    for name in DOCUMENTS:
        for document in json.loads((folder / name).read_text(encoding="utf-8")):
            yield from map(written, _sentences(document))


def _sentences(document: Mapping[str, Any]) -> Iterator[Words]:
    marks = [["O"] * len(words) for words in document["sents"]]
    for mentions in document["vertexSet"]:
        for mention in mentions:
            first, end = mention["pos"]
            marks[mention["sent_id"]][first:end] = [
                f"{'I' if at else 'B'}-{mention['type']}" for at in range(end - first)
            ]
    for words, labels in zip(document["sents"], marks, strict=True):
        # A few words are a space of some kind or have one in them.
        yield [(w.strip(), label) for w, label in zip(words, labels, strict=True) if w.strip()]


def written(rows: Words) -> Marked:
    """The text of words with the spaces that people write, and the names in it."""
    text, before, is_quoted = "", "", False
    spans: list[tuple[int, int, str]] = []
    for word, label in rows:
        ends = word in ENDS or word in JOINTS or (word[0] == "'" and len(word) > 1)
        ends |= (before, word) == ("'", "s") or (word == '"' and is_quoted)
        begins = before in BEGINNINGS or before in JOINTS or (before == '"' and is_quoted)
        text += "" if not text or ends or begins else " "
        is_quoted ^= word == '"'
        start, before = len(text), word
        text += word
        position, _, name = label.partition("-")
        if position == "B":
            spans.append((start, len(text), name))
        elif position == "I" and spans:
            spans[-1] = (spans[-1][0], len(text), spans[-1][2])
    kinds = ((start, end, _kind(name, text[start:end])) for start, end, name in spans)
    return text, [span for span in kinds if span[2]]


def _kind(label: str, value: str) -> str:
    """Our kind, `?` where what is marked may be another one."""
    kind = KIND_OF_LABEL.get(label, "")
    classes = [classes_of(word.casefold()) for word in value.split()]
    if kind == "PLACE" and NATIONALITIES in classes[-1]:
        return "?"
    is_full_name = len(classes) == 2 and FIRST_NAMES & set(classes[0])
    return "?" if label == "MISC" and is_full_name else kind
