"""Alembic's entry: runs the changes inside the transaction that the store opened and locked.

Nothing is configured here; connection and table name come from the store.
"""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    version_table=context.config.attributes["version_table"],
)
context.run_migrations()
