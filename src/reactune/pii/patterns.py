"""Personal data with a fixed form: addresses of mail and web, numbers, dates.

A pattern proposes, a check (digits, ranges, a number's check digit) decides. To detect another
kind of data, add a line to `PATTERNS`, or to `NATIONAL_IDS` for an id number of one country.
"""

import ipaddress
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import pairwise

from reactune.pii.spans import Span, Text, without_overlaps

Hint = Callable[[str], object]


@dataclass(frozen=True)
class Pattern:
    """How a kind of personal data is written; a named group is the part to replace.

    A text without the hint cannot hold it, and a hint is quicker to test.
    """

    kind: str
    hint: str
    regex: re.Pattern[str]
    is_valid: Callable[[str], bool] = bool
    score: float = 1.0


def find_patterns(texts: Sequence[str], *, kinds: Collection[str]) -> list[list[Span]]:
    """The spans of these kinds in every text, in its order, without overlaps."""
    patterns = [pattern for pattern in PATTERNS if pattern.kind in kinds]
    return [_spans(text, patterns) for text in texts]


def _spans(text: str, patterns: Iterable[Pattern]) -> list[Span]:
    hints = {hint for hint, is_given in HINTS.items() if is_given(text)}
    if DIGIT(text):
        hints |= {hint for hint, is_given in HINTS_WITH_DIGITS.items() if is_given(text)}
    if not hints:
        return []
    found = [
        Span(*match.span(match.lastgroup or 0), pattern.kind, pattern.score)
        for pattern in patterns
        if pattern.hint in hints
        for match in pattern.regex.finditer(text)
        if pattern.is_valid(match[match.lastgroup or 0])
    ]
    return without_overlaps(text, found) if found else []


def is_card(value: str) -> bool:
    """Luhn's check digit, ISO/IEC 7812-1 annex B."""
    digits = [int(char) for char in value if char.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return 12 <= len(digits) <= 19 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def is_iban(value: str) -> bool:
    """The check digits of ISO 13616: the number modulo 97 is 1."""
    compact = re.sub(r"[ .-]", "", value).upper()
    digits = "".join(str(int(char, 36)) for char in compact[4:] + compact[:4])
    return 15 <= len(compact) <= 34 and int(digits) % 97 == 1


def is_ip(value: str) -> bool:
    """Whether the value is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


def is_grouped_card(value: str) -> bool:
    """As `is_card`, in groups of three digits or more, or in one: a list of numbers is none."""
    return is_card(value) and min(map(len, re.findall(r"\d+", value))) >= 3


def is_likely_ip(value: str) -> bool:
    """An IPv4 address that is no number of a version or a chapter: those have small parts."""
    parts = value.split(".")
    return is_ip(value) and (any(int(part) >= 100 for part in parts) or parts[:2] == ["10", "0"])


def is_phone(value: str) -> bool:
    """Nine to fifteen digits (ITU-T E.164 allows 15), no date among them and no list of numbers."""
    main = re.split(r"[^\d ()/.+-]", value)[0]
    is_long = 9 <= sum(char.isdigit() for char in main) <= 15
    return is_long and not HAS_DATE.search(value) and not is_series(main)


def is_local_phone(value: str) -> bool:
    """Seven or eight digits in groups that are no list, range or date."""
    return not is_series(re.split(r"[^\d ()/.+-]", value)[0])


def is_series(value: str) -> bool:
    """Whether the groups of digits are a list or a range of numbers (`10 12 15`, `5000-8000`).

    What begins as telephone numbers do (`+`, `00`, `0`, a bracket) is none, but for small numbers.
    """
    groups = re.findall(r"\d+", value)
    numbers = [int(group) for group in groups]
    is_small = len(groups) > 2 and max(numbers) <= 31 and max(map(len, groups)) <= 2
    if is_small or re.fullmatch(r"\d+\.\d+|\d{1,3}(?:\.\d{3})*\.000", value) or value[:1] in "+(0":
        return is_small or (value[:1] not in "+(0")
    if len(groups) == 1:
        return False
    are_years = all(1900 <= number <= 2100 for number in numbers)
    is_near = len(groups) == 2 and numbers[0] < numbers[1] < 1.5 * numbers[0]  # lines 1204-1260
    if is_near and len(groups[0]) == len(groups[1]):
        return True
    steps = {one < other for one, other in pairwise(numbers)}
    is_range = len(set(map(len, groups))) == 1 and len(groups) > 3 and len(steps) == 1
    is_list = len(groups) > 4 and max(map(len, groups)) <= 2
    return are_years or is_range or is_list or all(number % 5 == 0 for number in numbers)


def is_short_phone(value: str) -> bool:
    """Six to twelve digits without a date among them: enough after a word such as `call`."""
    return 6 <= sum(char.isdigit() for char in value) <= 12 and not HAS_DATE.search(value)


def is_short_phone_in_prose(value: str) -> bool:
    """As `is_short_phone`, and no list, range or date: after a word such as `reach` or `work`."""
    return is_short_phone(value) and not is_series(value)


def is_number_in_one(value: str) -> bool:
    """Seven to fifteen digits without separators: enough right after a word such as `phone`."""
    return 7 <= len(value) <= 15


def labelled(name: str, value: str) -> Text:
    """The value of a named field, whether its words are joined by `_` or by capitals.

    A label helps to read a value of few words, and what a name that says so holds: `city: Berlin`.
    Before a sentence it misleads: in `message: Cook rice` nobody is called Cook, and in
    `text: 5000-8000` no number is called.
    """
    words = JOINED_WORDS.sub(" ", name.replace("_", " "))
    words = " ".join(LOOSE_NAMES.sub(" ", words.lower() if words != name else words).split())
    is_of_use = words and (len(value.split()) <= FEW_WORDS or TELLING_NAME.search(words))
    return Text(f"{words}: " if is_of_use else "", value)


def names_a_number(label: str) -> bool:
    """Whether the label of a field says that a number in it is somebody's: `phone: `, `born: `."""
    return bool(NAME_OF_FIELD.search(label))


def names_a_phone(label: str) -> bool:
    """Whether the label of a field says that what stands in it are telephone numbers."""
    return bool(PHONE_NAME.search(label))


def is_place_on_earth(value: str) -> bool:
    """Whether two decimal numbers are a latitude and a longitude, in degrees."""
    latitude, longitude = (float(number) for number in re.findall(r"-?\d+\.\d+", value)[:2])
    return abs(latitude) <= 90 and abs(longitude) <= 180


def is_number_of(modules: Sequence[str], value: str) -> bool:
    """Whether one of these modules of stdnum accepts the value; without modules, always."""
    return not modules or any(
        import_module(f"stdnum.{module}").is_valid(value) for module in modules
    )


def _has_any_of(words: str) -> Hint:
    """Whether a text, in lower case, has one of the words: quicker than a regular expression."""
    each_word = words.split()

    def is_given(text: str) -> bool:
        lower = text.lower()
        return any(word in lower for word in each_word)

    return is_given


def _national_id(regex: str, *modules: str) -> Pattern:
    return Pattern(
        "ID",
        "letters and digits" if "[A-" in regex else "number",
        re.compile(rf"(?<![\w-])(?:{regex})(?![\w-])", re.A),
        partial(is_number_of, modules),
    )


DIGIT = re.compile(r"\d").search
HINTS: dict[str, Hint] = {
    "@": lambda text: "@" in text or "%40" in text,
    ".": re.compile(r"\w\.\w|://").search,
    ":": lambda text: text.count(":") > 1,
    "at": re.compile(r"[\[(]at[\])]", re.I).search,
    "day": _has_any_of("day"),
}
HINTS_WITH_DIGITS: dict[str, Hint] = {
    "digit": lambda text: True,
    "dotted": re.compile(r"\d\.\d{1,3}\.\d").search,
    "number": re.compile(r"\d(?:[ ()/.-]{0,3}\d){6}").search,
    "letters and digits": re.compile(r"[A-Za-z]\d|\d-?[A-Za-z]|[A-Z]{2} \d\d").search,
    "degrees": re.compile(r"\d\.\d{3}|°").search,
    "birth": _has_any_of(
        "born birth dob d.o.b geb né nacid nacim nato nata nasci naissance urodz født"
    ),
    "old": _has_any_of("old age yo y/o yr was i'm am turned alt"),
    "name of number": _has_any_of(
        "passport licen identity id tax social insurance medica mrn ssn nino nhs account steuer "
        "personalausweis pass dni pesel bsn cpf"
    ),
    "phone": _has_any_of(
        "call phone tel mobile cell fax ring dial text whatsapp reach home desk work office number "
        "contact msisdn sms télé telé móvil handy"
    ),
    "post": _has_any_of("zip post plz"),
}

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

NATIONAL_IDS = (
    _national_id(r"\d{3}-\d{2}-\d{4}"),  # US social security and taxpayer numbers: no check digit
    _national_id(r"\d{3} \d{3} \d{4}", "gb.nhs"),
    _national_id(r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d\d ?\d\d ?\d\d ?[A-D]"),  # UK insurance
    _national_id(r"[12] ?\d\d ?\d\d ?(?:\d\d|2[ABab]) ?\d{3} ?\d{3} ?\d\d", "fr.nir"),
    _national_id(r"\d{2} ?\d{3} ?\d{3} ?\d{3}", "de.idnr"),
    _national_id(r"\d{8}-?[A-Za-z]", "es.dni"),
    _national_id(r"[XYZxyz]-?\d{7}-?[A-Za-z]", "es.nie"),
    _national_id(r"[A-Za-z]{6}\d{2}[A-Za-z]\d{2}[A-Za-z]\d{3}[A-Za-z]", "it.codicefiscale"),
    _national_id(r"\d{9}|\d{4}[. ]\d{2}[. ]\d{3}", "nl.bsn", "pt.nif", "ca.sin"),
    _national_id(r"\d{3}[- ]\d{3}[- ]\d{3}", "ca.sin", "au.tfn"),
    _national_id(
        r"\d{11}", "pl.pesel", "de.idnr", "ee.ik", "hr.oib", "br.cpf", "tr.tckimlik",
        "no.fodselsnummer",
    ),
    _national_id(r"\d{3}\.\d{3}\.\d{3}-\d{2}", "br.cpf"),
    _national_id(r"\d{4}[ -]\d{4}[ -]\d{4}|\d{12}", "in_.aadhaar"),
    _national_id(r"[A-Za-z]{3}[PCHFATBLJGEpchfatbljge][A-Za-z]\d{4}[A-Za-z]", "in_.pan"),
    _national_id(r"\d{2}\.\d{2}\.\d{2}-\d{3}\.\d{2}", "be.nn"),
    _national_id(r"756\.\d{4}\.\d{4}\.\d{2}", "ch.ssn"),
    _national_id(r"(?:19|20)?\d{6}[-+]\d{4}", "se.personnummer", "dk.cpr"),
    _national_id(r"\d{6}[-+A-FU-Yaf]\d{3}[0-9A-FHJ-NPR-Y]", "fi.hetu"),
    _national_id(r"\d{6}/\d{3,4}", "cz.rc"),
    _national_id(r"\d{6}-?\d{7}", "kr.rrn"),
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
PHONE_WORD = r"\b(?:call|phone|tel|telephone|mobile|cell|fax|ring|dial|whatsapp|number|contact)\b"
# These stand before other numbers as well: `reach 5000-8000 steps`.
LOOSE_PHONE_WORD = r"\b(?:text|reach|home|desk|work|office)\b"
PHONE_FIELD = (
    r"(?:phones?|tele?|telephones?|mobiles?|cell(?:phone)?|fax|whatsapp|msisdn|sms|dial|ring|call"
    r"|telefon\w*|téléphone|teléfono|celular|móvil|handy)"
)
PHONE_NAME = re.compile(rf"\b{PHONE_FIELD}\b", re.I)
NAME_OF_FIELD = re.compile(
    rf"\b(?:{PHONE_FIELD}|{NAME_OF_NUMBER}|(?:credit |bank )?cards?|contacts?|ids?|born|birth\w*"
    r"|dob|geb\w*|nacimiento|naissance|nascita|zip|post(?:al)? ?code|plz|ip)\b",
    re.I,
)
TELLING_NAME = re.compile(
    rf"{NAME_OF_FIELD.pattern}|\b(?:names?|person|people|friends?|partner|author|sender"
    r"|recipient|owner|assignee|patient|customer|client|doctor|teacher|coach|boss|manager|city|town"
    r"|village|place|country|region|state|address(?:es)?|street|location)\b",
    re.I,
)
JOINED_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
# Words of a name that say nothing of the value, and stand before telephone numbers in prose.
LOOSE_NAMES = re.compile(LOOSE_PHONE_WORD, re.I)
FEW_WORDS = 3
POSTCODE_WORD = r"(?:\bzip|\bpost(?:al)? ?code|\bplz)(?: code)?\s*(?:is|:|=)?\s*"
EMAIL = re.compile(r"[\w.+%-][\w.+%'-]{0,63}(?:@|%40)[\w-]{1,63}(?:\.[\w-]{1,63})+")
EMAIL_IN_WORDS = re.compile(
    r"[\w.+-]{1,64} ?[\[(]at[\])] ?[\w-]{1,63}(?: ?(?:\.|[\[(]dot[\])]) ?[\w-]{2,63}){1,4}", re.I
)
HANDLE = re.compile(r"(?<![\w@/])@\w{2,30}")
URL = re.compile(rf"(?:https?://|www\.){REST_OF_URL}", re.I)
DOMAIN = re.compile(
    rf"(?<![\w.@-])(?:[a-z0-9-]{{1,63}}\.)+{TLD}(?![\w@-])(?:/{REST_OF_URL})?", re.I
)
IBAN = re.compile(
    r"\b[A-Za-z]{2}\d{2}(?:[ .-]?[A-Za-z0-9]{4}){2,7}(?:[ .-]?[A-Za-z0-9]{1,3})?\b", re.A
)
CARD = re.compile(r"(?<![\d-])\d(?:(?:[ .-]|  |/)?\d){11,18}(?![\d-])", re.A)
DECIMAL_COORDINATES = re.compile(rf"(?<![\d.]){DEGREES}(?:\s*[,;]\s*|\s+){DEGREES}(?![\d.])")
COORDINATES = re.compile(rf"{MINUTES}(?:[,; ]+{MINUTES})?")
DOTTED = r"\d{1,3}(?:\.\d{1,3}){3}"
NUMBERED = (
    r"(?:version|release|build|firmware|update|upgrade|chapters?|sections?|articles?|paragraphs?"
    r"|part|step|v)"
)
IP_4 = re.compile(
    rf"(?:\b{NUMBERED}[ .:]*{DOTTED})|(?<![\w.])(?P<value>{DOTTED})(?![\w.]*\d)", re.A | re.I
)
IP_4_AFTER_WORD = re.compile(
    r"\b(?:ip|ipv4|address|server|host|router|gateway|dns|proxy|subnet|network|ping|ssh|login"
    rf"|connect|client|device)s?\b(?:\W{{1,3}}(?!{NUMBERED}\b)[a-z']{{1,12}}){{0,4}}?\W{{1,4}}"
    rf"(?P<value>{DOTTED})"
    rf"(?![\w.]*\d)|(?<![\w.])(?P<this>{DOTTED})(?=[:/]\d)",
    re.A | re.I,
)
IP_6 = re.compile(
    rf"(?<![\w:.])(?:[0-9A-Fa-f]{{0,4}}:){{2,7}}(?:{DOTTED}|[0-9A-Fa-f]{{0,4}})(?![\w:])", re.A
)
PHONE = re.compile(rf"(?<![\w.])(?:\+|00)?\(?\d[\d ()/.-]{{6,22}}\d{EXTENSION}(?!\w)", re.A)
LOCAL_PHONE = re.compile(
    rf"(?<![\w.-])(?<!\d )(?:\d{{3}}[-.]\d{{4}}|\d\d(?:[-. ]\d\d){{3}}|\d{{4}}[- ]\d{{4}})"
    rf"{EXTENSION}(?![\w-]| \d)",
    re.A,
)
SOON_AFTER = (
    r"(?:\W{1,3}[a-z']{1,12}){0,5}?\W{1,4}?"
    r"(?P<value>\(?\d{2,4}\)?[ .-]\d{2,4}(?:[ .-]?\d{2,4}){0,2})(?![\w-])"
)
PHONE_AFTER_WORD = re.compile(PHONE_WORD + SOON_AFTER, re.I | re.A)
PHONE_AFTER_LOOSE_WORD = re.compile(LOOSE_PHONE_WORD + SOON_AFTER, re.I | re.A)
PHONE_IN_ONE = re.compile(
    rf"\b{PHONE_FIELD}\b\W{{1,4}}?(?P<value>\d{{7,15}})(?![\w-])", re.I | re.A
)
POSTCODE = re.compile(
    rf"{POSTCODE_WORD}(?P<value>[A-Z]{{0,2}}-?\d[A-Z\d]{{1,4}}(?:[ -]?[A-Z\d]{{3,4}})?)\b", re.I
)

# Postcodes whose form little else has: of the United Kingdom (area, district, letters), of Canada.
UK_AREA = (
    r"A[BL]|B[ABDHLNRST]?|C[ABFHMORTVW]|D[ADEGHLNTY]|E[CHNX]?|F[KY]|G[LUY]?|H[ADGPRSUX]|I[GMPV]|JE"
    r"|K[ATWY]|L[ADELNSU]?|M[EKL]?|N[EGNPRW]?|O[LX]|P[AEHLOR]|R[GHM]|S[AEGKLMNOPRSTWY]?|T[ADFNQRSW]"
    r"|UB|W[ACDFNRSV]?|YO|ZE"
)
POSTCODE_FORM = re.compile(
    rf"(?<![\w-])(?:(?:{UK_AREA})\d[A-Z\d]? \d(?!GB|TB)[ABD-HJLNP-UW-Z]{{2}}"
    r"|[ABCEGHJ-NPRSTVXY]\d[ABCEGHJ-NPRSTV-Z] \d[ABCEGHJ-NPRSTV-Z]\d)(?![\w-])", re.A
)  # fmt: skip

# Where two overlap, the one that is listed first is kept whole.
PATTERNS = (
    Pattern("EMAIL", "@", EMAIL),
    Pattern("EMAIL", "at", EMAIL_IN_WORDS, score=0.8),
    Pattern("URL", ".", URL),
    Pattern("URL", ".", DOMAIN, score=0.8),
    Pattern("IBAN", "number", IBAN, is_iban),
    Pattern("COORDINATES", "degrees", DECIMAL_COORDINATES, is_place_on_earth),
    Pattern("COORDINATES", "degrees", COORDINATES),
    *NATIONAL_IDS,
    Pattern("ID", "name of number", NUMBER_AFTER_ITS_NAME, score=0.8),
    Pattern("CARD", "number", CARD, is_grouped_card),
    Pattern("IP", ":", IP_6, is_ip),
    Pattern("IP", "dotted", IP_4_AFTER_WORD, is_ip),
    Pattern("IP", "dotted", IP_4, is_likely_ip),
    Pattern("BIRTHDATE", "birth", BIRTHDATE),
    Pattern("PHONE", "number", PHONE, is_phone, score=0.8),
    Pattern("PHONE", "number", LOCAL_PHONE, is_local_phone, score=0.5),
    Pattern("PHONE", "phone", PHONE_AFTER_WORD, is_short_phone, score=0.6),
    Pattern("PHONE", "phone", PHONE_AFTER_LOOSE_WORD, is_short_phone_in_prose, score=0.6),
    Pattern("PHONE", "phone", PHONE_IN_ONE, is_number_in_one, score=0.6),
    Pattern("ADDRESS", "post", POSTCODE, score=0.8),
    Pattern("ADDRESS", "letters and digits", POSTCODE_FORM, score=0.8),
    Pattern("HANDLE", "@", HANDLE),
    Pattern("AGE", "old", AGE, score=0.8),
    Pattern("DATE", "digit", DATE, score=0.8),
    Pattern("DATE", "day", WEEKDAY, score=0.8),
)
