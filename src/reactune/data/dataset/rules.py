"""Which labelled tips become examples, rule by rule, and which part each falls into.

A rule is a query of DuckDB over `examples`; it sees small keys, never texts, and its result does
not depend on the order of rows.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from reactune.config.sections import DatasetConfig
from reactune.data.dataset.near_duplicates import mark_near_duplicates
from reactune.data.labelled import Batches, clean_schema, one_row, quoted
from reactune.errors import DataError
from reactune.records import PARTS, Part, folded_text, one_line

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection

ORDER = f"list_position({list(PARTS)}, part)"  # of a part, in SQL
OTHERS = 10  # other users that must have reacted before one can be an outlier
COMMON = 0.2  # a dwell time of so large a share of others' reactions is due to a coarse clock
BIN = 0.05  # width of the bins of log dwell in which that share is counted
BURST_SECONDS = 60
CONSTANT_DWELL_REACTIONS = 10  # of one label that a user gave before a dwell can be constant
CONSTANT_DWELL_SPREAD = 1.05  # ninth decile of a constant dwell by its first, at most
MAX_SHARE_OF_KIND = 0.2  # of a kind's reactions; a user who gave more steers it
NEAR_DUPLICATE = 0.9  # Jaccard index of word 3-shingles from which two tips are one
MAX_IMBALANCE = 10  # how many times as often one label of a kind may occur as the other
MAX_USERS_CACHED = 100_000
NEAR = "near duplicates"
LEAKED = "text stands in an earlier part"
Progress = Callable[[str, int], None]
Rule = Callable[[DatasetConfig], str]


def load(connection: "DuckDBPyConnection", batches: Batches, settings: DatasetConfig) -> int:
    """Fill an empty database with labelled rows, and return their number.

    `labelled` has everything. `examples` has what rules compare, a row for each example that no
    rule removed yet: keys instead of texts, and `place`, the order of tip_id. `refused` is empty.
    """
    import pyarrow as pa

    texts = [pa.field(name, pa.string()) for name in ("plain", "folded", "part")]
    schema = pa.schema([*clean_schema(), *texts])
    rows = _with_texts(batches, settings, schema)
    connection.register("incoming", pa.RecordBatchReader.from_batches(schema, rows))
    connection.execute("""
        CREATE TABLE labelled AS SELECT * EXCLUDE (plain, folded),
            md5_number(concat_ws(chr(0), kind, context_json, plain)) AS question,
            md5_number(folded) AS folded,
            md5_number(concat_ws(chr(0), user_key, kind, dwell_ms, tip, prompt)) AS whole
        FROM incoming""")
    connection.unregister("incoming")
    connection.execute("""
        CREATE TABLE examples AS SELECT rowid AS row,
            row_number() OVER (ORDER BY tip_id, created_at, label, whole) AS place,
            kind, label, dwell_ms, created_at, coalesce(reacted_at, created_at) AS reacted_at,
            md5_number(tip_id) AS tip, md5_number(user_key) AS person, question, folded, part
        FROM labelled""")
    connection.execute("CREATE TABLE refused (row BIGINT, reason VARCHAR)")
    return count_examples(connection)


def choose(
    connection: "DuckDBPyConnection",
    settings: DatasetConfig,
    *,
    folder: Path,
    progress: Progress,
) -> dict[str, int]:
    """Apply the rules in order to `examples`, and return how many each removed.

    What was removed is in `refused`, with the rule's name as the reason. `progress` gets the name
    of each rule and the number of examples it left. `folder` is for temporary files.
    """
    removed = {}
    for reason, rule in RULES:
        if reason == NEAR:
            find_near_duplicates(connection, folder=folder)
        removed[reason] = keep_only(connection, rule(settings), reason)
        progress(reason, count_examples(connection))
    return removed


def split(connection: "DuckDBPyConnection", settings: DatasetConfig) -> dict[str, int]:
    """Give examples their part by age if the settings say so, and remove texts that leak."""
    if settings.split_by == "time":
        keep_only(connection, part_by_time(settings), "")
    return {LEAKED: keep_only(connection, without_leaks(), LEAKED)}


def keep_only(connection: "DuckDBPyConnection", query: str, reason: str) -> int:
    """Make the rows of a query the examples, refuse the others, and return their number."""
    connection.execute(f"CREATE TABLE kept AS {query}")
    refuse = "INSERT INTO refused SELECT row, $1 FROM examples ANTI JOIN kept USING (place)"
    (removed,) = one_row(connection, refuse, reason)
    connection.execute("DROP TABLE examples; ALTER TABLE kept RENAME TO examples")
    return int(removed)


def count_examples(connection: "DuckDBPyConnection") -> int:
    """How many examples no rule removed yet."""
    (number,) = one_row(connection, "SELECT count(*) FROM examples")
    return int(number)


def require_no_leaks(
    connection: "DuckDBPyConnection", file: Path, settings: DatasetConfig
) -> Mapping[str, int]:
    """How much of one part is in another, too, in a file of examples as it was written.

    Counted are texts, users and, where the split is by time, moments that come before the last one
    of an earlier part. A split by time allows users in several parts.

    Raises:
        DataError: something is in two parts that must not be.
    """
    connection.create_function("folded_text", folded_text, ["VARCHAR"], "VARCHAR")
    users, texts, moments = one_row(
        connection,
        f"""
        WITH held AS (
            SELECT user_key, folded_text(tip) AS text, created_at, {ORDER} AS part
            FROM {quoted(file)}),
        spans AS (SELECT part, min(created_at) AS first, max(created_at) AS last
                  FROM held GROUP BY part)
        SELECT
            (SELECT count(*) FROM (
                SELECT 1 FROM held GROUP BY user_key HAVING min(part) < max(part))),
            (SELECT count(*) FROM (
                SELECT 1 FROM held GROUP BY text HAVING min(part) < max(part))),
            (SELECT count(*) FROM spans a JOIN spans b
             ON a.part < b.part AND b.first <= a.last)
        """,
    )
    connection.remove_function("folded_text")
    by_time = settings.split_by == "time"
    shared = {"users": users, "texts": texts, **({"moments": moments} if by_time else {})}
    forbidden = ("texts", "moments") if by_time else ("users", "texts")
    if any(shared[name] for name in forbidden):
        raise DataError(
            f"the dataset is not used: of its parts, more than one holds "
            f"{', '.join(f'{shared[name]} {name}' for name in forbidden)}; this is a fault of "
            "reactune, please report it"
        )
    return shared


def part_of(user_key: str, settings: DatasetConfig) -> Part:
    """The part that a user's examples fall into; it stays as long as seed and shares stay."""
    digest = hashlib.sha256(f"{settings.seed}:{user_key}".encode()).digest()
    place = int.from_bytes(digest[:8]) / 2**64
    train, validation, _ = settings.split
    if place < train:
        return "train"
    return "validation" if place < train + validation else "test"


def part_by_time(settings: DatasetConfig) -> str:
    """SQL of `examples` with the part that their age gives them.

    The oldest are train, the newest test; what was made at one moment is in one part.
    """
    train, validation, _ = settings.split
    return f"""
        SELECT * EXCLUDE (part, age, number), CASE
            WHEN age <= {train!r} * number THEN 'train'
            WHEN age <= {train + validation!r} * number THEN 'validation'
            ELSE 'test' END AS part
        FROM (SELECT *, rank() OVER (ORDER BY created_at) AS age, count(*) OVER () AS number
              FROM examples)"""


def without_leaks() -> str:
    """SQL of `examples` without texts, in whatever case, that an earlier part holds."""
    return f"""
        SELECT * FROM examples QUALIFY {ORDER} = min({ORDER}) OVER (PARTITION BY folded)"""


def without_repeats(settings: DatasetConfig) -> str:
    """One example per tip_id, the newest: a source may hold a tip twice, the store never does."""
    return _newest(1, of="tip")


def without_bursts(settings: DatasetConfig) -> str:
    """Examples but those in a burst: more reactions of a user in a window than a person can read.

    A rule on rates, as in Buehrer, Stokes, Chellapilla, A large-scale study of automated web
    search traffic (AIRWeb 2008). All reactions of a window that is over the limit are left out.
    """
    window = f"INTERVAL {BURST_SECONDS} SECONDS"
    return f"""
        SELECT * EXCLUDE (fast, fastest) FROM (
            SELECT *, max(fast) OVER (PARTITION BY person ORDER BY reacted_at
                RANGE BETWEEN CURRENT ROW AND {window} FOLLOWING) AS fastest
            FROM (SELECT *, count(*) OVER (PARTITION BY person ORDER BY reacted_at
                RANGE BETWEEN {window} PRECEDING AND CURRENT ROW) AS fast FROM examples))
        WHERE fastest <= {settings.burst_reactions}"""


def without_constant_dwell(settings: DatasetConfig) -> str:
    """Examples but those of users whose dwell times are nearly constant.

    Reactions of one user with one label are compared: times of humans vary, those of programs
    need not (Gianvecchio et al., Measurement and classification of humans and bots in
    internet chat, USENIX Security 2008). Where others have that dwell as often, the clock is
    coarse, and nobody is left out.
    """
    enough, spread = CONSTANT_DWELL_REACTIONS, CONSTANT_DWELL_SPREAD
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
        users AS (SELECT label, count(*) AS number FROM deciles GROUP BY label),
        bots AS (
            SELECT person, label FROM near JOIN common USING (person, label)
            JOIN users USING (label)
            WHERE users.number > {OTHERS}
            AND common.share - near.share <= {COMMON} * (users.number - 1))
        SELECT * FROM examples ANTI JOIN bots USING (person, label)"""


def without_dominant_users(settings: DatasetConfig) -> str:
    """Examples but those of a user who gave too large a share of all reactions to a kind.

    One profile that rates often moves what all others get (Lam and Riedl, Shilling recommender
    systems for fun and profit, WWW 2004).
    """
    return f"""
        WITH given AS (SELECT kind, person, count(*) AS number FROM examples GROUP BY ALL),
        steered AS (
            SELECT kind, person FROM given
            QUALIFY number > {MAX_SHARE_OF_KIND} * sum(number) OVER (PARTITION BY kind)
            AND count(*) OVER (PARTITION BY kind) > {OTHERS})
        SELECT * FROM examples ANTI JOIN steered USING (kind, person)"""


def without_contradictions(settings: DatasetConfig) -> str:
    """Of one text in one context with both labels, those with the label that more users gave.

    Each user has one vote, their newest reaction; a tie removes all of them. The same text in two
    contexts is no contradiction: that it fits one and not the other is what is to be learned.
    """
    return f"""
        WITH leads AS (
            SELECT question, sum(CASE WHEN label THEN 1 ELSE -1 END) AS lead
            FROM ({_newest(1, of="question, person")}) GROUP BY question)
        SELECT examples.* FROM examples JOIN leads USING (question)
        WHERE CASE WHEN label THEN lead > 0 ELSE lead < 0 END"""


def without_exact_duplicates(settings: DatasetConfig) -> str:
    """One example per kind, context, text and label: the oldest; a repetition is nothing new."""
    return _oldest(1, of="question, label")


def without_near_duplicates(settings: DatasetConfig) -> str:
    """No text that nearly repeats an older one of its kind and label, whatever the context."""
    return "SELECT * FROM examples ANTI JOIN near USING (kind, label, folded)"


def cap_texts(settings: DatasetConfig) -> str:
    """At most `max_per_text` examples of each kind, label and text: the oldest."""
    return _oldest(settings.max_per_text, of="kind, label, folded")


def cap_users(settings: DatasetConfig) -> str:
    """At most `max_per_user` examples of each user: the newest."""
    return _newest(settings.max_per_user, of="person")


def cap_labels(settings: DatasetConfig) -> str:
    """Of each kind, one label at most `MAX_IMBALANCE` times as often as the other: the newest."""
    return f"""
        WITH rarer AS (
            SELECT kind, greatest(1, least(count(*) FILTER (label), count(*) FILTER (NOT label)))
                AS number FROM examples GROUP BY kind)
        SELECT examples.* FROM examples JOIN rarer USING (kind)
        QUALIFY row_number() OVER (PARTITION BY kind, label ORDER BY created_at DESC, place DESC)
            <= {MAX_IMBALANCE} * rarer.number"""


def find_near_duplicates(connection: "DuckDBPyConnection", *, folder: Path) -> None:
    """Fill `near` with the texts of a kind and label that nearly repeat an older one that is kept.

    One kind and label at a time, so that memory holds sketches of one of them.
    """
    import numpy as np
    import pyarrow as pa

    first = _oldest(1, of="kind, label, folded")
    connection.execute(f"""
        CREATE TABLE texts AS SELECT row, kind, label, folded, row_number() OVER (
            PARTITION BY kind, label ORDER BY created_at, place) - 1 AS age FROM ({first});
        CREATE TABLE near (kind VARCHAR, label BOOLEAN, folded UHUGEINT)""")
    groups = connection.execute("SELECT DISTINCT kind, label FROM texts ORDER BY ALL").fetchall()
    for kind, label in groups:
        with TemporaryDirectory(dir=folder) as sketches:
            texts = _texts_by_age(connection, kind, label)
            near = mark_near_duplicates(texts, NEAR_DUPLICATE, folder=Path(sketches))
        connection.register("repeats", pa.table({"age": np.flatnonzero(near)}))
        connection.execute(
            "INSERT INTO near SELECT kind, label, folded FROM texts JOIN repeats USING (age) "
            "WHERE kind = $1 AND label = $2",
            [kind, label],
        )
        connection.unregister("repeats")
    connection.execute("DROP TABLE texts")


def _texts_by_age(connection: "DuckDBPyConnection", kind: str, label: bool) -> Iterator[str]:
    query = (
        "SELECT labelled.tip FROM texts JOIN labelled ON labelled.rowid = texts.row "
        "WHERE texts.kind = $1 AND texts.label = $2 ORDER BY age"
    )
    for batch in connection.sql(query, params=[kind, label]).to_arrow_reader(10_000):
        yield from map(folded_text, batch.column(0).to_pylist())


def _newest(number: int, *, of: str) -> str:
    return _ranked(f"PARTITION BY {of} ORDER BY created_at DESC, place DESC", number)


def _oldest(number: int, *, of: str) -> str:
    return _ranked(f"PARTITION BY {of} ORDER BY created_at, place", number)


def _ranked(window: str, number: int) -> str:
    return f"SELECT * FROM examples QUALIFY row_number() OVER ({window}) <= {number}"


def _with_texts(
    batches: Batches, settings: DatasetConfig, schema: "pa.Schema"
) -> "Iterator[pa.RecordBatch]":
    """Each batch with the texts that are compared, and the part of each user."""
    import pyarrow as pa

    part = lru_cache(MAX_USERS_CACHED)(partial(part_of, settings=settings))
    for batch in batches:
        plain = [one_line(tip) for tip in batch.column("tip").to_pylist()]
        folded = [text.casefold() for text in plain]
        added = [plain, folded, [part(user) for user in batch.column("user_key").to_pylist()]]
        columns = [batch.column(name) for name in clean_schema().names]
        texts = [pa.array(values, pa.string()) for values in added]
        yield pa.RecordBatch.from_arrays([*columns, *texts], schema=schema)


RULES: tuple[tuple[str, Rule], ...] = (
    ("repeated tip_id", without_repeats),
    ("faster than a person reads", without_bursts),
    ("constant dwell time", without_constant_dwell),
    ("one user steers the kind", without_dominant_users),
    ("contradicted", without_contradictions),
    ("exact duplicates", without_exact_duplicates),
    (NEAR, without_near_duplicates),
    ("over the cap per text", cap_texts),
    ("over the cap per user", cap_users),
    ("over the balance of labels", cap_labels),
)
