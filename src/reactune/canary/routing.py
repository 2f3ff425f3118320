"""Which arm answers: a pure function of unit, salt and share, as in GrowthBook's SDKs."""

from collections.abc import Sequence
from datetime import UTC, datetime

from reactune.privacy.hashing import short_key
from reactune.records import Arm, Unit

BUCKETS = 10_000
_FNV_OFFSET = 0x811C9DC5
_FNV_PRIME = 0x01000193


def fnv1a32(text: str, *, start: int = _FNV_OFFSET) -> int:
    """32-bit FNV-1a over the UTF-16 code units of the text, as GrowthBook's SDKs compute it.

    `start` is the hash of what comes before the text.
    """
    if text.isascii():
        units: Sequence[int] = text.encode("ascii")
    else:
        units = memoryview(text.encode("utf-16-le", "surrogatepass")).cast("H")
    value = start
    for unit in units:
        value = ((value ^ unit) * _FNV_PRIME) & 0xFFFFFFFF
    return value


def bucket(unit_value: str, *, salt: str) -> int:
    """The unit's place in 0..9999: GrowthBook's hash version 2, times 10,000."""
    return bucket_after(fnv1a32(salt), unit_value)


def bucket_after(salt_hash: int, unit_value: str) -> int:
    """`bucket` with a salt that was hashed before, for callers that route many units."""
    return fnv1a32(str(fnv1a32(unit_value, start=salt_hash))) % BUCKETS


def bucket_ranges(
    weights: Sequence[float], *, coverage: float = 1.0
) -> tuple[tuple[float, float], ...]:
    """Half-open ranges of [0, 1), one for each weight, as GrowthBook's `getBucketRange`.

    Coverage below 1 keeps the starts and shortens the ranges. Weights that do not sum to 1
    within a hundredth are made equal, and coverage is cut to 0..1.
    """
    covered = min(max(coverage, 0.0), 1.0)
    if not 0.99 <= sum(weights) <= 1.01:
        weights = equal_weights(len(weights))
    starts = [sum(weights[:place]) for place in range(len(weights))]
    return tuple(
        (start, start + covered * weight) for start, weight in zip(starts, weights, strict=True)
    )


def equal_weights(count: int) -> tuple[float, ...]:
    """So many equal weights that sum to 1; none for a count below 1."""
    return (1 / count,) * count if count > 0 else ()


def route(unit_value: str, *, salt: str, share: float) -> Arm:
    """The arm of a unit; the challenger holds the buckets in [0, share).

    Raising the share never moves a unit away from the challenger. The share is rounded to
    the 10,000 buckets; `propensity` is the chance that follows.
    """
    return "challenger" if bucket(unit_value, salt=salt) < challenger_buckets(share) else "champion"


def propensity(arm: Arm, share: float) -> float:
    """Chance with which `route` assigns a new unit to this arm; logged with every exposure."""
    buckets = challenger_buckets(share)
    return (buckets if arm == "challenger" else BUCKETS - buckets) / BUCKETS


def unit_key(unit: Unit, *, tip_id: str, user_key: str, at: datetime) -> str:
    """What is routed as one: the tip itself, all tips of a user on one UTC day, or all of a user.

    A user stands in it by `short_key`, as the hash that draws arms reads every digit. With
    `user_day` a user may meet both models, on different days; with `user` the differences between
    users stay in every comparison, which CUPED reduces.
    """
    if unit == "tip":
        return tip_id
    user = short_key(user_key)
    return user if unit == "user" else day_start(at) + user


def day_start(at: datetime) -> str:
    """The prefix of all units of a UTC day, so that it can be hashed once for all of them."""
    return f"{at.astimezone(UTC):%Y-%m-%d}:"


def challenger_buckets(share: float) -> int:
    """How many of the buckets, from 0 on, are the challenger's."""
    return round(share * BUCKETS)
