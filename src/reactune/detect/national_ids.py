"""Numbers by which states know people: a pattern proposes, the number's check digits decide.

The checks are python-stdnum's; numbers without a check digit of their own need a name before them.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module


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
