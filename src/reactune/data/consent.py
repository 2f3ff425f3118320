"""Who may be learned from, asked of every row on its way from the source into a run.

What people decided is `people.py`'s; which rows are evidence is `scores.py`'s.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache

from reactune.config import SourceConfig
from reactune.data.engines import RAW_ID
from reactune.data.scores import Admits
from reactune.people import Refusals
from reactune.records import Counts

OPTED_OUT, ERASED = "opted out", "erased"
MAX_CACHED = 100_000


def admission(refusals: Refusals, source: SourceConfig, left_out: Counter[str]) -> Admits | None:
    """The test for `read_scores`, or None where nobody refuses.

    Whom it turns down is counted in `left_out`, by reason.
    """
    if not refusals.standings:
        return None
    is_raw = RAW_ID in source.columns
    standing_of = lru_cache(MAX_CACHED)(refusals.of_id if is_raw else refusals.of_user_key)

    def admits(ids: Sequence[str | None], times: Sequence[datetime | None]) -> list[bool]:
        return [_admits(each, at) for each, at in zip(ids, times, strict=True)]

    def _admits(user: str | None, created_at: datetime | None) -> bool:
        standing = standing_of(user or "")
        if standing.refuses(created_at):
            left_out[ERASED] += 1
            return False
        if not standing.training_allowed:
            left_out[OPTED_OUT] += 1
        return standing.training_allowed

    return admits


def after_consent(evidence: Counts, left_out: Counter[str], *, read: int) -> Counts:
    """The counts of the labels, of which so many rows were read and not left out.

    What the source's own query kept back has opted out, too.
    """
    kept_back = max(0, evidence.went_out - left_out.total() - read)
    theirs = {**left_out, OPTED_OUT: kept_back + left_out[OPTED_OUT]}
    return Counts(evidence.came_in, read, {**evidence.refused, **theirs})
