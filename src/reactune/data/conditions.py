"""`[source] where`: one condition in the SQL of an engine, checked before it becomes a filter.

Parsing is sqlglot's; no engine is asked.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from reactune.errors import ConfigError

if TYPE_CHECKING:
    from ibis.expr.types import Table
    from sqlglot.expressions import Column, Condition

HOW = "write what stands after WHERE, such as app = 'coach' AND language IN ('en', 'de')"


def condition(where: str, *, dialect: Any, columns: Collection[str] = ()) -> "Condition":
    """The condition, parsed in a dialect of sqlglot; the names in it are looked for in `columns`.

    Raises:
        ConfigError: it is not one condition on one row, or names a column that is not there.
    """
    import sqlglot
    from sqlglot import expressions as sql
    from sqlglot.errors import SqlglotError

    try:
        parsed = sqlglot.parse_one(where, read=dialect, into=sql.Condition)
    except SqlglotError as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise _refused(where, f"is not one condition ({reason})") from error
    if parsed.find(sql.Query):
        raise _refused(where, "asks another table; make a view of it, and name that as the table")
    if parsed.find(sql.AggFunc, sql.Window):
        raise _refused(where, "looks at more than one row")
    named = list(parsed.find_all(sql.Column))
    if not named:
        raise _refused(where, "names no column")
    known = {column.casefold() for column in columns}
    unknown = sorted({each.sql() for each in named if known.isdisjoint(_names(each))})
    if known and unknown:
        raise _refused(where, f"names {', '.join(unknown)}, but there are {', '.join(columns)}")
    return parsed


def rows_that_meet(table: "Table", where: str, *, written_in: str, compiled_to: str) -> "Table":
    """The rows of a table of a database that meet a condition.

    The condition is written in one dialect of Ibis, and compiled to one: that of the database.

    Raises:
        ConfigError: see `condition`.
    """
    from ibis.expr.operations import DatabaseTable, SQLStringView
    from sqlglot import expressions as sql

    there = table.op()
    known = table.columns if isinstance(there, DatabaseTable) else ()
    parsed = condition(where, dialect=_language(written_in), columns=known)
    place = sql.table_(
        there.name, db=there.namespace.database, catalog=there.namespace.catalog, quoted=True
    )
    query = sql.select("*").from_(place).where(parsed).sql(dialect=_language(compiled_to))
    return SQLStringView(parent=there, query=query, schema=table.schema()).to_expr()


def _language(dialect: str) -> Any:
    """Sqlglot's name of an Ibis dialect."""
    from ibis.backends.sql import compilers

    return getattr(compilers, dialect).compiler.dialect


def _names(column: "Column") -> set[str]:
    """What a column may be called: `context.app` may be a column of a table, or a field of one."""
    return {part.name.casefold() for part in column.parts}


def _refused(where: str, reason: str) -> ConfigError:
    return ConfigError(f"source.where = {where!r} {reason}; {HOW}")
