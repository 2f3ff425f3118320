"""Which arm answers: a pure function of unit, salt and share.

What is live, and at what share, is for `rollout.py`; exposures are written by the service.
"""

from datetime import UTC, datetime

from reactune.records import Arm, Unit

BUCKETS = 10_000
_FNV_OFFSET = 0x811C9DC5
_FNV_PRIME = 0x01000193


def fnv1a32(text: str) -> int:
    """32-bit FNV-1a over the UTF-16 code units of the text, as GrowthBook's SDKs compute it."""
    encoded = text.encode("utf-16-le", "surrogatepass")
    value = _FNV_OFFSET
    for low, high in zip(encoded[::2], encoded[1::2], strict=True):
        value = ((value ^ (low | high << 8)) * _FNV_PRIME) & 0xFFFFFFFF
    return value


def bucket(unit_value: str, *, salt: str) -> int:
    """The unit's place in 0..9999: GrowthBook's hash version 2, times 10,000."""
    return fnv1a32(str(fnv1a32(salt + unit_value))) % BUCKETS


def route(unit_value: str, *, salt: str, share: float) -> Arm:
    """The arm of a unit; the challenger holds the buckets in [0, share).

    Raising the share never moves a unit away from the challenger. The share is rounded to
    the 10,000 buckets; `propensity` tells the chance that follows.
    """
    return (
        "challenger" if bucket(unit_value, salt=salt) < _challenger_buckets(share) else "champion"
    )


def propensity(arm: Arm, share: float) -> float:
    """Chance with which `route` gives this arm to a fresh unit; logged with every exposure."""
    buckets = _challenger_buckets(share)
    return (buckets if arm == "challenger" else BUCKETS - buckets) / BUCKETS


def unit_key(unit: Unit, *, tip_id: str, user_key: str, at: datetime) -> str:
    """What is routed as one: the tip itself, or all tips of a user on one UTC day."""
    if unit == "tip":
        return tip_id
    return f"{user_key}:{at.astimezone(UTC):%Y-%m-%d}"


def _challenger_buckets(share: float) -> int:
    return round(share * BUCKETS)
