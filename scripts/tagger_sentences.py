"""Sentences with marked names for the tagger: our templates filled from Faker's lists."""

import random
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import cache

from faker import Faker
from tagger_words import (
    AMBIGUOUS,
    DEMONYMS,
    FORMS,
    NOUNS,
    PLAIN,
    REPORTS,
    SIGNS,
    SMALL_TALK,
    TASKS,
    TITLES,
    VERBS,
    words_in,
)

from reactune.pii.tagger import lexicon

Marked = tuple[str, list[tuple[int, int, str]]]  # text, and (start, end, kind) in it

LOCALES = words_in(
    """
    en_US en_GB en_AU en_CA en_IN en_NZ en_IE de_DE de_AT de_CH fr_FR fr_BE fr_CA es_ES es_MX
    es_AR es_CL it_IT pt_PT pt_BR nl_NL nl_BE da_DK sv_SE no_NO fi_FI is_IS et_EE lv_LV lt_LT
    pl_PL cs_CZ sk_SK sl_SI hr_HR hu_HU ro_RO bg_BG el_GR ru_RU uk_UA tr_TR az_AZ id_ID vi_VN
    ar_AA fa_IR ja_JP ko_KR zh_CN th_TH hi_IN ta_IN ne_NP ka_GE hy_AM he_IL yo_NG zu_ZA tw_GH
    fil_PH
    """
)
ENGLISH = LOCALES[:7]
PLACEHOLDER = re.compile(r"<[A-Z]+_\d>")
# What stays together where marks are set apart: links, addresses, `'s`, `well-known` or words only.
LINK = r"https?://\S+|www\.\S+|\S+@\S+\.\w+|<[A-Z]+_\d>"
PIECE = re.compile(rf"{LINK}|'(?:s|t|m|re|ll|ve|d)\b|\w+(?:[-.:/]\w+)*|[^\w\s]", re.I)
SMALL_PIECE = re.compile(rf"{LINK}|'(?:s|t|m|re|ll|ve|d)\b|\w+|[^\w\s]", re.I)
LAST_DAY = datetime(2026, 1, 1)  # of dates: Faker's own is today, and no two runs were equal
SLOT = re.compile(r"\{(\w+)\}")
TEMPLATES = ((SMALL_TALK, 10), (REPORTS, 7), (FORMS, 5), (TASKS, 3), (PLAIN, 4), (AMBIGUOUS, 3),
             (SIGNS, 2))  # fmt: skip
KINDS = {"i": "PERSON", "p": "PERSON", "first": "PERSON", "last": "PERSON", "full": "PERSON",
         "t": "TITLE", "j": "TITLE", "a": "ADDRESS", "k": "ADDRESS", "c": "PLACE",
         "o": "ORGANIZATION", "g": "GROUP"}  # fmt: skip
JOBS = words_in(
    """
    teacher nurse doctor lawyer engineer carpenter baker journalist singer actor actress writer
    painter composer economist physicist chemist historian politician senator minister president
    director chairman chairwoman spokesman spokeswoman manager accountant analyst consultant
    designer developer architect pilot driver farmer fisherman plumber electrician mechanic
    librarian professor researcher photographer musician drummer guitarist goalkeeper striker
    coach judge detective officer
    """
)
COMPANY_ENDINGS = (
    *("",) * 4, " Inc", " Ltd", " Group", " Bank", " Labs", " University", " Media", " Corporation",
    " Partners", " Institute", " Systems", ".com", " AG",
)  # fmt: skip
SPACED = 0.08  # share of sentences with spaces around their marks
CROSSINGS = ("the corner of {} and {}", "{} and {}", "corner {} / {}", "{} & {}")


def sentences(count: int, *, seed: int) -> Iterator[Marked]:
    """So many filled templates, some of several sentences, some small or all in capitals."""
    rng = random.Random(seed)
    groups, weights = zip(*TEMPLATES, strict=True)
    for _ in range(count):
        parts = []
        fill = _filler(rng)
        for _ in range(rng.choice((1, 1, 1, 2))):
            group = rng.choices(groups, weights)[0]
            parts.append(_fill(rng.choice(group).replace("\\n", "\n"), fill))
        marked = _dress(_join(parts, rng.choice((" ", " ", "\n"))), rng)
        yield spaced(marked, rng) if rng.random() < SPACED else marked


def _filler(rng: random.Random) -> Callable[[str], str]:
    locale = rng.choice(ENGLISH) if rng.random() < 0.45 else rng.choice(LOCALES)
    fakes = {"": faker(locale), "en": faker("en_US"), "other": faker(rng.choice(LOCALES))}
    known: list[tuple[str, str]] = []
    hidden = rng.random() < 0.06

    def name() -> tuple[str, str]:
        if known and rng.random() < 0.3:
            return rng.choice(known)
        fake = fakes[""] if rng.random() < 0.7 else fakes["other"]
        known.append((_first(fake, rng), _last(fake, rng)))
        return known[-1]

    def fill(slot: str) -> str:
        if hidden and KINDS.get(slot):
            return f"<{KINDS[slot]}_{rng.randrange(1, 4)}>"
        fake = fakes[""] if rng.random() < 0.8 else fakes["en"]
        return _value(slot, fake, rng, name)

    return fill


def _value(slot: str, fake: Faker, rng: random.Random, name: Callable[[], tuple[str, str]]) -> str:
    if slot == "first":
        return name()[0]
    if slot == "last":
        return name()[1]
    if slot == "i":
        return handle(*name(), rng)
    if slot in ("full", "p"):
        return _full(*name(), rng)
    if slot == "t":
        title = rng.choice(TITLES)
        return title + "." if len(title) < 4 and rng.random() < 0.6 else title
    if slot == "j":
        return rng.choice(JOBS) if rng.random() < 0.6 else _job(rng)
    if slot == "a":
        return address(fake, rng)
    if slot == "k":
        return _road(fake, rng)
    if slot == "c":
        return _place(fake, rng)
    if slot == "o":
        return _company(fake, rng)
    if slot == "g":
        return rng.choice(DEMONYMS)
    return _other(slot, rng)


def handle(first: str, last: str, rng: random.Random) -> str:
    """What a person may call themselves on a network: letters, digits and `_`."""
    first, last = ("".join(filter(str.isalnum, name)) for name in (first, last))
    word, mark = rng.choice(_words_with("01")), rng.choice(("", "", "_", "__", "x", "the"))
    number = rng.choice(("", "", str(rng.randrange(1, 100)), str(rng.randrange(1960, 2010))))
    made = rng.choice((
        first + last, f"{first}_{last}", first + mark + number, last + mark, first[:1] + last,
        f"{mark}{first}{word.capitalize()}", f"{word}{first}", f"{word.capitalize()}{number}",
        f"{word.capitalize()}{_capital_word(rng)}", f"{word}_{first}{number}",
    ))  # fmt: skip
    return (made if rng.random() < 0.6 else made.lower())[:15] or "x"


def _full(first: str, last: str, rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.15:
        return f"{first} {rng.choice('ABCDEFGHIJKLMNOPRSTVW')}. {last}"
    if draw < 0.20:
        return f"{first} {rng.choice('ABCDEFGHJKLMRST')} {last}"
    if draw < 0.23:
        return f"{first[0]}. {last}"
    if draw < 0.26:
        return f"{first} {last}-{last[:1]}{last[1:]}"
    return f"{first} {last}"


def _first(fake: Faker, rng: random.Random) -> str:
    return str(fake.first_name()) if rng.random() < 0.75 else _listed("Ff", rng)


def _last(fake: Faker, rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.65:
        return str(fake.last_name())
    return _listed("Ll", rng) if draw < 0.9 else _invented(rng)


def _place(fake: Faker, rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.3:
        place = _listed("CCc", rng)
    elif draw < 0.55:
        place = str(faker("en_US").country()).partition("(")[0].strip()
    elif draw < 0.8:
        place = str(fake.city())
    elif draw < 0.9:
        place = str(faker("en_US").state())
    else:
        wider = faker("en_US").state_abbr() if rng.random() < 0.5 else faker("en_US").country()
        place = f"{_listed('Cc', rng)}, {wider}"
    return place.upper() if rng.random() < 0.12 else place


def _company(fake: Faker, rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.4:
        return str(fake.company())
    stem = _invented(rng) if draw < 0.75 else f"{_capital_word(rng)} {_capital_word(rng)}"
    return stem + rng.choice(COMPANY_ENDINGS)


def address(fake: Faker, rng: random.Random) -> str:
    """A postal address in the form of the locale, of the United States, or in one of ours."""
    draw = rng.random()
    if draw < 0.35:
        text = str(fake.address())
    elif draw < 0.45:
        text = str(faker("en_US").address())
    else:
        text = _composed(fake, rng)
    if rng.random() < 0.3:
        text = text.replace("\n", rng.choice((", ", " ", "\n ", ",\n")))
    return text


def _composed(fake: Faker, rng: random.Random) -> str:
    number = str(rng.choice((rng.randrange(1, 200), rng.randrange(200, 99_999))))
    street = str(fake.street_name())
    parts = [rng.choice((f"{number} {street}", f"{street} {number}"))]
    if rng.random() < 0.15:
        parts[0] = f"{rng.randrange(1, 9999):04d} {parts[0]}"
    if rng.random() < 0.3:
        unit = rng.choice(("Apt.", "Apt", "Suite", "Unit", "Flat", "Floor", "#", "Room"))
        parts.append(f"{unit} {rng.randrange(1, 999):{rng.choice(('', '03'))}d}")
    draw = rng.random()
    if draw < 0.75:
        town, code, state = str(fake.city()), str(fake.postcode()), faker("en_US").state_abbr()
        parts.append(
            rng.choice((town, f"{code} {town}", f"{town} {code}", f"{town}, {state} {code}"))
        )
    if draw < 0.25:
        parts.append(str(faker("en_US").country()))
    return rng.choice((", ", ", ", "\n", "\n ")).join(parts)


def _road(fake: Faker, rng: random.Random) -> str:
    one, two = str(fake.street_name()), str(fake.street_name())
    if rng.random() < 0.4:
        return rng.choice(CROSSINGS).format(one, two)
    if rng.random() < 0.5:
        return (
            f"{one} {rng.randrange(1, 300)}"
            if rng.random() < 0.5
            else f"{rng.randrange(1, 999)} {one}"
        )
    return one


def _job(rng: random.Random) -> str:
    job = str(faker("en_US").job())
    return job.split(",")[0] if rng.random() < 0.8 else job


def _other(slot: str, rng: random.Random) -> str:
    fake = faker("en_US")
    if slot == "d":
        form = rng.choice(("%Y", "%Y", "%d/%m/%Y", "%Y-%m-%d", "%B %d, %Y", "%d %B %Y", "%B %Y"))
        return str(fake.date(pattern=form, end_datetime=LAST_DAY))
    if slot == "n":
        return str(rng.choice((rng.randrange(1, 100), rng.randrange(100, 100_000))))
    if slot == "e":
        return str(fake.email() if rng.random() < 0.6 else fake.url())
    if slot in ("u", "v"):
        return rng.choice(NOUNS if slot == "u" else VERBS)
    if slot == "w":
        word = rng.choice(_words_with("01"))
        return word.capitalize() if rng.random() < 0.5 else word
    if slot == "x":
        return str(
            rng.choice((fake.credit_card_number(), fake.ssn(), fake.bothify("??#######").upper()))
        )
    return str(faker(rng.choice(LOCALES[:32])).phone_number())


def _invented(rng: random.Random) -> str:
    """A word that looks like a name and is in no list."""
    syllables = [
        "ba",
        "be",
        "bo",
        "ca",
        "co",
        "da",
        "de",
        "do",
        "fa",
        "fe",
        "ga",
        "go",
        "ha",
        "he",
        "ja",
        "ka",
        "ki",
        "la",
        "le",
        "li",
        "lo",
        "ma",
        "me",
        "mi",
        "mo",
        "na",
        "ne",
        "ni",
        "no",
        "pa",
        "per",
        "ra",
        "re",
        "ri",
        "ro",
        "sa",
        "se",
        "si",
        "so",
        "ta",
        "te",
        "ti",
        "to",
        "va",
        "ve",
        "vi",
        "wa",
        "za",
        "xen",
        "tron",
        "vex",
        "dor",
        "lin",
        "mar",
        "ston",
        "berg",
    ]
    return "".join(rng.choice(syllables) for _ in range(rng.randrange(2, 4))).capitalize()


def _capital_word(rng: random.Random) -> str:
    return rng.choice(_words_with("01")).capitalize()


def _listed(letters: str, rng: random.Random) -> str:
    return rng.choice(_words_with(rng.choice(letters))).capitalize()


@cache
def _words_with(letters: str) -> list[str]:
    return [w for w, classes in lexicon().items() if set(letters) & set(classes) and len(w) > 2]


@cache
def faker(locale: str) -> Faker:
    """Faker of a locale, seeded."""
    fake = Faker(locale)
    fake.seed_instance(locale)
    return fake


def _fill(template: str, fill: Callable[[str], str]) -> Marked:
    text, spans, end = "", [], 0
    for slot in SLOT.finditer(template):
        text += template[end : slot.start()]
        value = fill(slot.group(1))
        # What is hidden already is neither a name nor none: nothing is learned of it.
        kind = (
            "?"
            if PLACEHOLDER.fullmatch(value)
            else KINDS.get(slot.group(1), "?" if slot.group(1) == "e" else "")
        )
        if kind:
            at = (
                len(text) - len("@ ") if slot.group(1) == "i" and text.endswith("@ ") else len(text)
            )
            spans.append((at, len(text) + len(value), kind))
        text += value
        end = slot.end()
    return text + template[end:], spans


def _join(parts: list[Marked], between: str) -> Marked:
    text, spans = "", []
    for part, marks in parts:
        at = len(text) + len(between) if text else 0
        text = f"{text}{between}{part}" if text else part
        spans += [(start + at, end + at, kind) for start, end, kind in marks]
    return text, spans


def _dress(marked: Marked, rng: random.Random) -> Marked:
    text, spans = marked
    draw = rng.random()
    other = text.lower() if draw < 0.12 else text.upper() if draw < 0.15 else text
    return (other, spans) if len(other) == len(text) else marked


def spaced(marked: Marked, rng: random.Random) -> Marked:
    """The text with spaces around its marks, as some tools write posts.

    What stands behind an `@` is somebody's name there, unless it is marked as something else.
    """
    text, spans = marked
    pieces = (PIECE if rng.random() < 0.7 else SMALL_PIECE).finditer(text)
    out, place, end = "", [0] * (len(text) + 1), 0
    handles = []
    for piece in pieces:
        gap = text[end : piece.start()]
        out += gap or (" " if end else "")
        if out.rstrip().endswith("@") and gap == "" and piece[0][0].isalpha():
            handles.append((len(out.rstrip()) - 1, len(out) + len(piece[0]), "PERSON"))
        for number in range(len(gap)):
            place[end + number] = len(out) - len(gap) + number
        for number in range(len(piece[0])):
            place[piece.start() + number] = len(out) + number
        out += piece[0]
        end = piece.end()
    place[end:] = [len(out)] * (len(place) - end)
    # An end is that of the last character: a space may have come behind it.
    moved = [(place[first], place[last - 1] + 1, kind) for first, last, kind in spans]
    return out, [*handles, *moved]


def renamed(marked: Marked, rng: random.Random) -> Marked:
    """A post with other people and places in it, written in the case of those that it had."""
    text, spans = marked
    out, marks, end = "", [], 0
    for start, stop, kind in sorted(spans):
        if start < end:
            return marked
        value = text[start:stop]
        is_name = (
            value.replace(" ", "").isalpha() and text[max(0, start - 2) : start].strip() != "@"
        )
        if is_name and kind in ("PERSON", "PLACE") and rng.random() < 0.7:
            value = _cased(_another(value, kind, rng), value)
        out += text[end:start]
        marks.append((len(out), len(out) + len(value), kind))
        out += value
        end = stop
    return out + text[end:], marks


def _another(value: str, kind: str, rng: random.Random) -> str:
    fake = faker(rng.choice(ENGLISH) if rng.random() < 0.4 else rng.choice(LOCALES))
    if kind == "PLACE":
        return _place(fake, rng) if rng.random() < 0.7 else value
    match value.count(" "):
        case 0:
            return _first(fake, rng) if rng.random() < 0.6 else _last(fake, rng)
        case 1:
            return f"{_first(fake, rng)} {_last(fake, rng)}"
    return value


def _cased(new: str, old: str) -> str:
    if old.islower():
        return new.lower()
    return new.upper() if old.isupper() and len(old) > 3 else new
