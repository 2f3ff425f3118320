"""Reactions that no person gave, as far as their times and numbers tell.

SQL over the `examples` of `rules.py`. What is found is left out and counted; how often people are
taken for machines, and machines found, is measured by `bench/humans.py`.
"""

from reactune.config import DatasetConfig

OTHERS = 10  # other users that must have reacted too before one stands out from them
COMMON = 0.2  # a dwell that so large a share of others' reactions has is a clock's, not a machine's
BIN = 0.05  # width of the bins of log dwell in which that share is looked up


def without_bursts(settings: DatasetConfig) -> str:
    """Examples but those in a burst: more reactions of a user in a window than a person can read.

    A rule on rates, as in Buehrer, Stokes, Chellapilla, A large-scale study of automated web
    search traffic (AIRWeb 2008). All reactions of a window that is over the limit are left out.
    """
    window = f"INTERVAL {settings.burst_seconds} SECONDS"
    return f"""
        SELECT * EXCLUDE (fast, fastest) FROM (
            SELECT *, max(fast) OVER (PARTITION BY person ORDER BY reacted_at
                RANGE BETWEEN CURRENT ROW AND {window} FOLLOWING) AS fastest
            FROM (SELECT *, count(*) OVER (PARTITION BY person ORDER BY reacted_at
                RANGE BETWEEN {window} PRECEDING AND CURRENT ROW) AS fast FROM examples))
        WHERE fastest <= {settings.burst_reactions}"""


def without_constant_dwell(settings: DatasetConfig) -> str:
    """Examples but those of users who look at every tip equally long.

    Looked at are the reactions of one user with one label: times of people vary, those of
    programs need not (Gianvecchio et al., Measurement and classification of humans and bots in
    internet chat, USENIX Security 2008). Where others have that dwell as often, the clock is
    coarse, and nobody is left out.
    """
    enough, spread = settings.constant_dwell_reactions, settings.constant_dwell_spread
    return f"""
        WITH ranked AS (
            SELECT person, label, greatest(dwell_ms, 1) AS dwell,
                floor(ln(greatest(dwell_ms, 1)) / {BIN}) AS bin,
                row_number() OVER (PARTITION BY person, label ORDER BY dwell_ms) AS rank,
                count(*) OVER (PARTITION BY person, label) AS number
            FROM examples),
        deciles AS (
            SELECT person, label, any_value(number) AS number,
                min(dwell) FILTER (rank > 0.1 * number) AS low,
                min(dwell) FILTER (rank >= 0.9 * number) AS high,
                min(bin) FILTER (rank >= 0.5 * number) AS bin
            FROM ranked GROUP BY person, label),
        constant AS (
            FROM deciles WHERE number >= {enough} AND high <= {spread!r} * low),
        own AS (
            SELECT person, label, bin, count(*) / any_value(number) AS share
            FROM ranked GROUP BY person, label, bin),
        near AS (
            SELECT c.person, c.label, sum(own.share) AS share
            FROM constant c JOIN own USING (person, label)
            WHERE own.bin BETWEEN c.bin - 1 AND c.bin + 1 GROUP BY ALL),
        bins AS (SELECT label, bin, sum(share) AS share FROM own GROUP BY ALL),
        common AS (
            SELECT c.person, c.label, sum(bins.share) AS share
            FROM constant c JOIN bins USING (label)
            WHERE bins.bin BETWEEN c.bin - 1 AND c.bin + 1 GROUP BY ALL),
        people AS (SELECT label, count(*) AS number FROM deciles GROUP BY label),
        machines AS (
            SELECT person, label FROM near JOIN common USING (person, label)
            JOIN people USING (label)
            WHERE people.number > {OTHERS}
            AND common.share - near.share <= {COMMON} * (people.number - 1))
        SELECT * FROM examples ANTI JOIN machines USING (person, label)"""


def without_steering(settings: DatasetConfig) -> str:
    """Examples but those of a user in a kind that this user alone gave too much of.

    One profile that rates often moves what all others get (Lam and Riedl, Shilling recommender
    systems for fun and profit, WWW 2004).
    """
    return f"""
        WITH given AS (SELECT kind, person, count(*) AS number FROM examples GROUP BY ALL),
        steered AS (
            SELECT kind, person FROM given
            QUALIFY number > {settings.max_share_of_kind!r} * sum(number) OVER (PARTITION BY kind)
            AND count(*) OVER (PARTITION BY kind) > {OTHERS})
        SELECT * FROM examples ANTI JOIN steered USING (kind, person)"""
