"""Personal data that its form gives away: addresses of mail and web, numbers, dates.

A pattern proposes, a check (digits, ranges, a number's own check digit) decides. Names are left to
the tagger.
"""

import ipaddress
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module

from reactune.pii.spans import Span, without_overlaps

MONTHS = """
    january jan february feb march mar april apr may june jun july jul august aug september sept
    sep october oct november nov december dec januar jänner februar märz mai juni juli oktober
    okt dezember dez janvier février mars avril juin juillet août septembre octobre novembre
    décembre enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre
    diciembre gennaio febbraio aprile maggio giugno luglio settembre ottobre dicembre januari
    februari maart mei augustus janeiro fevereiro março maio junho julho setembro outubro
    novembro dezembro
    """
LONGEST_FIRST = sorted(set(MONTHS.split()), key=lambda name: (-len(name), name))
MONTH = rf"(?=[jfmasondegv])(?:{'|'.join(LONGEST_FIRST)})\b\.?"
YEAR = r"(?:19|20)\d\d"
NUMERIC = rf"(?:{YEAR}[-/.]\d{{1,2}}[-/.]\d{{1,2}}|\d{{1,2}}[-/.]\d{{1,2}}[-/.](?:{YEAR}|\d\d))"
CLOCK = r"(?:[ T]\d\d?:\d\d(?::\d\d)?)?"
DAY_FIRST = rf"\d{{1,2}}(?:st|nd|rd|th|\.)? (?:of |de )?{MONTH}(?:,? (?:de )?\d{{4}})?"
MONTH_FIRST = rf"{MONTH} (?:{YEAR}|\d{{1,2}}(?:st|nd|rd|th)?(?:,? \d{{4}})?)"
ANY_DATE = rf"(?:{NUMERIC}{CLOCK}|{DAY_FIRST}|{MONTH_FIRST})"

BORN = (
    r"(?:\bborn|\bbirth|\bd\.?o\.?b\b|\bbirthday|\bgeboren|\bgeb\.|\bgeburtstag|\bnée?\b|\bnaissance"
    r"|\bnacid[oa]|\bnacimiento|\bnat[oa]\b|\bnascita|\bnascid[oa]|\bgeboortedatum|\burodz\w+|\bfødt)"
)
BIRTHDATE = re.compile(
    rf"{BORN}(?:\W{{1,3}}\w{{1,10}}){{0,3}}?\W{{1,4}}(?P<value>{ANY_DATE}(?!\w)|\b{YEAR}\b)"
    rf"|(?P<this>{ANY_DATE}) is (?:my|his|her|their) birthday",
    re.I,
)

OLD = r"(?:years?(?: |-)old|years? of age|yrs?\.? old|y/?o\b|year-old|jahre? alt)"
AGE = re.compile(
    rf"\b\d{{1,3}}(?=(?: |-)?{OLD})"
    r"|(?:(?<=\baged )|(?<=\bage )|(?<=\bage: ))\d{1,3}\b"
    r"|(?<=\bturned )\d{1,3}\b(?! (?:percent|times))"
    r"|(?<=\bhe was )\d{2}\b(?=\W|$)|(?:(?<=\bi am )|(?<=\bi'm ))\d{2}\b(?=[.,!]|$)",
    re.I,
)
DATE = re.compile(
    rf"(?<![\w./-])(?:{ANY_DATE}|{YEAR}(?= ?\)|[ ,.;?!]|$)(?![./-]\d))(?![\w/-])", re.I
)
WEEKDAY = re.compile(r"\b(?:mon|tues|wednes|thurs|fri|satur|sun)day\b", re.I)


@dataclass(frozen=True)
class NationalId:
    """As a `Form`: a number's sign and pattern, and whether what it finds is such a number."""

    sign: str
    pattern: re.Pattern[str]
    is_valid: Callable[[str], bool]


def passes(module: str, value: str) -> bool:
    """Whether stdnum's module of this name takes the value."""
    return bool(import_module(f"stdnum.{module}").is_valid(value))


def _national(pattern: str, *modules: str) -> NationalId:
    checks = [partial(passes, module) for module in modules]
    sign = "letters and digits" if "[A-" in pattern else "number"
    return NationalId(
        sign,
        re.compile(rf"(?<![\w-])(?:{pattern})(?![\w-])", re.A),
        lambda value: not checks or any(check(value) for check in checks),
    )


NATIONAL_IDS = (
    _national(r"\d{3}-\d{2}-\d{4}"),  # US social security and taxpayer numbers: no check digit
    _national(r"\d{3} \d{3} \d{4}", "gb.nhs"),
    _national(r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d\d ?\d\d ?\d\d ?[A-D]"),  # UK insurance
    _national(r"[12] ?\d\d ?\d\d ?(?:\d\d|2[ABab]) ?\d{3} ?\d{3} ?\d\d", "fr.nir"),
    _national(r"\d{2} ?\d{3} ?\d{3} ?\d{3}", "de.idnr"),
    _national(r"\d{8}-?[A-Za-z]", "es.dni"),
    _national(r"[XYZxyz]-?\d{7}-?[A-Za-z]", "es.nie"),
    _national(r"[A-Za-z]{6}\d{2}[A-Za-z]\d{2}[A-Za-z]\d{3}[A-Za-z]", "it.codicefiscale"),
    _national(r"\d{9}|\d{4}[. ]\d{2}[. ]\d{3}", "nl.bsn", "pt.nif", "ca.sin"),
    _national(r"\d{3}[- ]\d{3}[- ]\d{3}", "ca.sin", "au.tfn"),
    _national(
        r"\d{11}", "pl.pesel", "de.idnr", "ee.ik", "hr.oib", "br.cpf", "tr.tckimlik",
        "no.fodselsnummer",
    ),
    _national(r"\d{3}\.\d{3}\.\d{3}-\d{2}", "br.cpf"),
    _national(r"\d{4}[ -]\d{4}[ -]\d{4}|\d{12}", "in_.aadhaar"),
    _national(r"[A-Za-z]{3}[PCHFATBLJGEpchfatbljge][A-Za-z]\d{4}[A-Za-z]", "in_.pan"),
    _national(r"\d{2}\.\d{2}\.\d{2}-\d{3}\.\d{2}", "be.nn"),
    _national(r"756\.\d{4}\.\d{4}\.\d{2}", "ch.ssn"),
    _national(r"(?:19|20)?\d{6}[-+]\d{4}", "se.personnummer", "dk.cpr"),
    _national(r"\d{6}[-+A-FU-Yaf]\d{3}[0-9A-FHJ-NPR-Y]", "fi.hetu"),
    _national(r"\d{6}/\d{3,4}", "cz.rc"),
    _national(r"\d{6}-?\d{7}", "kr.rrn"),
)  # fmt: skip

NAME_OF_NUMBER = (
    r"(?:passport|driver'?s?'? licen[cs]e|driving licen[cs]e|licen[cs]e plate|national id"
    r"|identity card|id card|social security|tax(?:payer)? id|national insurance|insurance|medicare"
    r"|medical record|mrn|ssn|nino|nhs|patient id|member id|customer id|account|steuer-?id"
    r"|personalausweis|reisepass|dni|pesel|bsn|cpf)"
)
NUMBER_AFTER_ITS_NAME = re.compile(
    rf"\b{NAME_OF_NUMBER}(?: (?:number|no\.?|nr\.?|id|code))?\b\s*(?:#|:|=|is|was)?\s*"
    r"(?P<value>(?=(?:[ -]?[A-Z0-9]){5})[A-Z]{0,5}\d[A-Z0-9]*(?:[ -][A-Z]{0,3}\d[A-Z0-9]*){0,4})"
    r"(?![\w-])",
    re.I | re.A,
)


Sign = Callable[[str], object]


def _holds(words: str) -> Sign:
    """Whether a text, made small, holds one of the words: searching for words is fast."""
    sought = words.split()

    def shows(text: str) -> bool:
        small = text.lower()
        return any(word in small for word in sought)

    return shows


DIGIT = re.compile(r"\d").search
SIGNS: dict[str, Sign] = {
    "@": lambda text: "@" in text,
    ".": re.compile(r"\w\.\w|://").search,
    ":": lambda text: text.count(":") > 1,
    "day": _holds("day"),
}
SIGNS_WITH_DIGITS: dict[str, Sign] = {
    "digit": lambda text: True,
    "number": re.compile(r"\d(?:[ ()/.-]{0,3}\d){6}").search,
    "letters and digits": re.compile(r"[A-Za-z]\d|\d-?[A-Za-z]|[A-Z]{2} \d\d").search,
    "degrees": re.compile(r"\d\.\d{3}|°").search,
    "birth": _holds("born birth dob d.o.b geb né nacid nacim nato nata nasci naissance urodz født"),
    "old": _holds("old age yo y/o yr was i'm am turned alt"),
    "name of number": _holds(
        "passport licen identity id tax social insurance medica mrn ssn nino nhs account steuer "
        "personalausweis pass dni pesel bsn cpf"
    ),
    "phone": _holds(
        "call phone tel mobile cell fax ring dial text whatsapp reach home desk work office number "
        "contact"
    ),
    "post": _holds("zip post plz"),
}


@dataclass(frozen=True)
class Form:
    """What a kind of personal data looks like; a named group is the part replaced.

    A text without its sign cannot hold it, which is found out faster.
    """

    kind: str
    sign: str
    pattern: re.Pattern[str]
    is_valid: Callable[[str], bool] = bool
    score: float = 1.0


def find_forms(texts: Sequence[str], *, kinds: Collection[str]) -> list[list[Span]]:
    """The spans of these kinds in every text, in its order, without overlaps."""
    forms = [form for form in FORMS if form.kind in kinds]
    return [_spans(text, forms) for text in texts]


def _spans(text: str, forms: Iterable[Form]) -> list[Span]:
    signs = {sign for sign, shows in SIGNS.items() if shows(text)}
    if DIGIT(text):
        signs |= {sign for sign, shows in SIGNS_WITH_DIGITS.items() if shows(text)}
    if not signs:
        return []
    found = [
        Span(*match.span(match.lastgroup or 0), form.kind, form.score)
        for form in forms
        if form.sign in signs
        for match in form.pattern.finditer(text)
        if form.is_valid(match[match.lastgroup or 0])
    ]
    return without_overlaps(text, found) if found else []


def is_card(value: str) -> bool:
    """Luhn's check digit, ISO/IEC 7812-1 annex B."""
    digits = [int(char) for char in value if char.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return 12 <= len(digits) <= 19 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def is_iban(value: str) -> bool:
    """The check digits of ISO 13616: the number modulo 97 is 1."""
    compact = value.replace(" ", "").upper()
    digits = "".join(str(int(char, 36)) for char in compact[4:] + compact[:4])
    return 15 <= len(compact) <= 34 and int(digits) % 97 == 1


def is_ip(value: str) -> bool:
    """Whether the value is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


def is_phone(value: str) -> bool:
    """Nine to fifteen digits (ITU-T E.164 allows 15), unless there is a date among them."""
    digits = re.sub(r"\D", "", re.split(r"[^\d ()/.+-]", value)[0])
    return 9 <= len(digits) <= 15 and not HAS_DATE.search(value)


def is_short_phone(value: str) -> bool:
    """Six to twelve digits, where words before them speak of a telephone."""
    return 6 <= sum(char.isdigit() for char in value) <= 12 and not HAS_DATE.search(value)


def is_place_on_earth(value: str) -> bool:
    """Whether two decimal numbers are a latitude and a longitude, in degrees."""
    latitude, longitude = (float(number) for number in re.findall(r"-?\d+\.\d+", value)[:2])
    return abs(latitude) <= 90 and abs(longitude) <= 180


HAS_DATE = re.compile(
    r"^\(?(19|20)\d\d[-./ ]\d{1,2}[-./ ]\d{1,2}"
    r"|\b\d{1,2}([-./ ])\d{1,2}\2(19|20)\d\d\b|\b(19|20)\d\d - "
)
TLD = (
    r"(?:com|org|net|edu|gov|info|biz|io|dev|tv|eu|co\.uk|ac\.uk|org\.uk|com\.au|com\.br|uk|ca|au|nz"
    r"|ie|de|ch|fr|nl|lu|dk|se|fi|ee|lv|lt|pl|cz|sk|hu|hr|ro|bg|gr|es|pt|ru|ua|jp|cn|br|mx)"
)
REST_OF_URL = r"[^\s<>\"']*[^\s<>\"'.,;:!?)]"
DEGREES = r"-?\d{1,3}\.\d{3,}°?"
MINUTES = r"\d{1,3}°\s?\d{1,2}['\u2032]\s?(?:\d{1,2}(?:\.\d+)?[\"\u2033]\s?)?[NSEWO]"
EXTENSION = r"(?: ?(?:x|ext\.?|extension) ?\d{1,6})?"
PHONE_WORD = (
    r"\b(?:call|phone|tel|telephone|mobile|cell|fax|ring|dial|text|whatsapp|reach|home|desk|work"
    r"|office|number|contact)\b"
)
POSTCODE_WORD = r"(?:\bzip|\bpost(?:al)? ?code|\bplz)(?: code)?\s*(?:is|:|=)?\s*"

# What stands first wins where two overlap.
FORMS = (
    Form("EMAIL", "@", re.compile(r"[\w.+%-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})+")),
    Form("URL", ".", re.compile(rf"(?:https?://|www\.){REST_OF_URL}", re.I)),
    Form(
        "URL",
        ".",
        re.compile(
            rf"(?<![\w.@-])(?:[a-z0-9-]{{1,63}}\.)+{TLD}(?![\w@-])(?:/{REST_OF_URL})?", re.I
        ),
        score=0.8,
    ),
    Form(
        "IBAN",
        "number",
        re.compile(r"\b[A-Za-z]{2}\d{2}(?: ?[A-Za-z0-9]{4}){2,7}(?: ?[A-Za-z0-9]{1,3})?\b", re.A),
        is_iban,
    ),
    Form(
        "COORDINATES",
        "degrees",
        re.compile(rf"(?<![\d.]){DEGREES}(?:\s*[,;]\s*|\s+){DEGREES}(?![\d.])"),
        is_place_on_earth,
    ),
    Form("COORDINATES", "degrees", re.compile(rf"{MINUTES}(?:[,; ]+{MINUTES})?")),
    *(Form("ID", each.sign, each.pattern, each.is_valid) for each in NATIONAL_IDS),
    Form("ID", "name of number", NUMBER_AFTER_ITS_NAME, score=0.8),
    Form("CARD", "number", re.compile(r"(?<![\d-])\d(?:[ -]?\d){11,18}(?![\d-])", re.A), is_card),
    Form("IP", "number", re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.]*\d)", re.A), is_ip),
    Form(
        "IP",
        ":",
        re.compile(r"(?<![\w:])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])", re.A),
        is_ip,
    ),
    Form("BIRTHDATE", "birth", BIRTHDATE),
    Form(
        "PHONE",
        "number",
        re.compile(rf"(?<![\w.])(?:\+|00)?\(?\d[\d ()/.-]{{6,22}}\d{EXTENSION}(?!\w)", re.A),
        is_phone,
        score=0.8,
    ),
    Form(
        "PHONE",
        "number",
        re.compile(
            r"(?<![\w.-])(?:\d{3}[-.]\d{4}|\d\d(?:[-. ]\d\d){3}|\d{4}[- ]\d{4})"
            rf"{EXTENSION}(?![\w-])",
            re.A,
        ),
        score=0.5,
    ),
    Form(
        "PHONE",
        "phone",
        re.compile(
            rf"{PHONE_WORD}(?:\W{{1,3}}[a-z']{{1,12}}){{0,5}}?\W{{1,4}}?"
            r"(?P<value>\(?\d{2,4}\)?[ .-]\d{2,4}(?:[ .-]?\d{2,4}){0,2})(?![\w-])",
            re.I | re.A,
        ),
        is_short_phone,
        score=0.6,
    ),
    Form(
        "ADDRESS",
        "post",
        re.compile(
            rf"{POSTCODE_WORD}(?P<value>[A-Z]{{0,2}}-?\d[A-Z\d]{{1,4}}(?:[ -]?[A-Z\d]{{3,4}})?)\b",
            re.I,
        ),
        score=0.8,
    ),
    Form("HANDLE", "@", re.compile(r"(?<![\w@/])@\w{2,30}")),
    Form("AGE", "old", AGE, score=0.8),
    Form("DATE", "digit", DATE, score=0.8),
    Form("DATE", "day", WEEKDAY, score=0.8),
)
