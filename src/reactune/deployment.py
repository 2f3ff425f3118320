"""`reactune deploy`: a version goes on trial because somebody says so.

A run deploys its own version (`pipeline.py`); how a trial ends is told in `review.py`.
"""

from datetime import datetime

from reactune import live
from reactune.config import Config


def deploy(config: Config, number: int | None, *, now: datetime) -> str:
    """Open a rollout for a registered version, without a number for the newest; a line says so.

    Where nothing is live yet, the base model becomes champion first. Repeating it changes nothing.

    Raises:
        CanaryError: another challenger is on trial, or the version is the champion.
        DataError: there is no such version.
        ReleaseError: the base cannot be exported, or the model server is away.
    """
    champion = live.ensure_champion(config)
    if number is None:
        number = live.versions(config)[-1].version
        if number == champion.version:
            return f"version {number} is champion, and there is no newer one to put on trial"
    opened = live.open_rollout(config, number, now=now)
    return f"version {number} answers {opened.share:.0%} of the tips beside {opened.champion}"


def deploy_base(config: Config) -> str:
    """See to it that something is live; a line says what. Repeating it changes nothing.

    Raises:
        ReleaseError: the base cannot be exported or registered, or the model server is away.
    """
    return f"version {live.ensure_champion(config).version} is champion"
