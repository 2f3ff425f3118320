"""Keyed hashes for people, typed placeholders for personal data, both ways.

Pure functions over text; which rows and keys they are applied to is decided by others.
"""

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from reactune.config import PrivacyConfig
from reactune.errors import PrivacyError

MIN_KEY_CHARS = 32
PLACEHOLDER = re.compile(r"<([A-Z][A-Z_]*)_(\d+)>")


@dataclass(frozen=True)
class Key:
    """The secret that turns user ids into `user_key`; its own id may be stored, it may not."""

    secret: bytes = field(repr=False)

    @property
    def key_id(self) -> str:
        """Names the key without revealing it: 8 hexadecimal digits of a keyed hash."""
        return hmac.new(self.secret, b"reactune key id", hashlib.sha256).hexdigest()[:8]


def load_key(settings: PrivacyConfig, environ: Mapping[str, str]) -> Key:
    """The key from the environment.

    Raises:
        PrivacyError: the variable is missing or shorter than 32 characters.
    """
    secret = environ.get(settings.key_env, "")
    if len(secret) < MIN_KEY_CHARS:
        raise PrivacyError(
            f"the environment variable {settings.key_env} holds {len(secret)} characters, "
            f"{MIN_KEY_CHARS} are needed to hash user ids; make one with `openssl rand -hex 32` "
            "and keep it: another key makes other users of the same people"
        )
    return Key(secret.encode())


def user_key(key: Key, user_id: str) -> str:
    """HMAC-SHA256 of the user id, 64 hexadecimal digits: equal ids give equal keys."""
    return hmac.digest(key.secret, user_id.encode("utf-8", "surrogatepass"), "sha256").hex()


def scrub(text: str, *, placeholders: dict[str, str], names: Iterable[str] = ()) -> str:
    """The text with personal data replaced by typed placeholders such as `<EMAIL_1>`.

    `placeholders` maps placeholder to value; it is read, so that one value keeps one placeholder
    within a request, and added to. Placeholders that stand in the text already are kept, and
    their numbers are not given again. `names` are people the app knows of.
    """
    taken = {match.group() for match in PLACEHOLDER.finditer(text)} | placeholders.keys()
    given = {value: placeholder for placeholder, value in placeholders.items()}

    def hide(type_name: str, value: str) -> str:
        if value not in given:
            number = next(n for n in range(1, len(taken) + 2) if f"<{type_name}_{n}>" not in taken)
            placeholder = f"<{type_name}_{number}>"
            taken.add(placeholder)
            placeholders[placeholder] = value
            given[value] = placeholder
        return given[value]

    for type_name, pattern, is_valid in DETECTORS:
        text = _replace(
            text,
            pattern,
            lambda found: hide(type_name, found) if is_valid(found) else found,  # noqa: B023
        )
    for name in sorted(
        {name.strip() for name in names} - {""}, key=lambda name: (-len(name), name)
    ):
        pattern = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)", re.IGNORECASE)
        text = _replace(text, pattern, lambda _: hide("PERSON", name))  # noqa: B023
    return text


def refill(text: str, placeholders: Mapping[str, str]) -> str | None:
    """The text with every placeholder filled in again, or None if one cannot be."""
    if any(match.group() not in placeholders for match in PLACEHOLDER.finditer(text)):
        return None
    filled = PLACEHOLDER.sub(lambda match: placeholders[match.group()], text)
    return None if BROKEN_PLACEHOLDER.search(PLACEHOLDER.sub("", text)) else filled


def _replace(text: str, pattern: re.Pattern[str], replace: Callable[[str], str]) -> str:
    """Replace what the pattern finds, but never inside a placeholder."""
    parts = []
    end = 0
    for placeholder in [*PLACEHOLDER.finditer(text), None]:
        start = placeholder.start() if placeholder else len(text)
        parts.append(pattern.sub(lambda match: replace(match.group()), text[end:start]))
        if placeholder:
            parts.append(placeholder.group())
            end = placeholder.end()
    return "".join(parts)


def _always(value: str) -> bool:
    return True


def _is_card(value: str) -> bool:
    """Luhn's check digit, ISO/IEC 7812-1 annex B."""
    digits = [int(char) for char in value if char.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return 13 <= len(digits) <= 19 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_iban(value: str) -> bool:
    """The check digits of ISO 13616: the number modulo 97 is 1."""
    compact = value.replace(" ", "").upper()
    digits = "".join(str(int(char, 36)) for char in compact[4:] + compact[:4])
    return 15 <= len(compact) <= 34 and int(digits) % 97 == 1


def _is_ip(value: str) -> bool:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


def _is_phone(value: str) -> bool:
    """Nine to fifteen digits (ITU-T E.164 allows 15), unless the text reads as a date."""
    digits = re.sub(r"\D", "", value)
    is_date = re.fullmatch(r"\(?(19|20)\d\d[-./ ]\d{1,2}[-./ ]\d{1,2}.*", value) is not None
    return 9 <= len(digits) <= 15 and not is_date


BROKEN_PLACEHOLDER = re.compile(r"<(?:PERSON|EMAIL|PHONE|URL|IP|IBAN|CARD|HANDLE)(?:_\d*)?>?", re.I)
DETECTORS: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("EMAIL", re.compile(r"[\w.+%-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})+"), _always),
    ("URL", re.compile(r"(?:https?://|www\.)[^\s<>\"']+[^\s<>\"'.,;:!?)]"), _always),
    (
        "IBAN",
        re.compile(r"\b[A-Za-z]{2}\d{2}(?: ?[A-Za-z0-9]{4}){2,7}(?: ?[A-Za-z0-9]{1,3})?\b", re.A),
        _is_iban,
    ),
    ("CARD", re.compile(r"(?<![\d-])\d(?:[ -]?\d){12,18}(?![\d-])", re.A), _is_card),
    ("IP", re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.]*\d)", re.A), _is_ip),
    (
        "IP",
        re.compile(r"(?<![\w:])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])", re.A),
        _is_ip,
    ),
    ("PHONE", re.compile(r"(?<![\w.])(?:\+|00)?\(?\d[\d ()/.-]{6,22}\d(?!\w)", re.A), _is_phone),
    ("HANDLE", re.compile(r"(?<![\w@/])@\w{2,30}"), _always),
)
