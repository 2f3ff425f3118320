"""An index of the users who refused training."""

import sqlalchemy as sa
from alembic import op

revision = "0005_refusals"
down_revision = "0004_shadow"


def upgrade() -> None:
    """Make the index."""
    refusals = sa.text("NOT training_allowed")
    op.create_index(
        "ix_tip_scores_refusals",
        "tip_scores",
        ["user_key"],
        postgresql_where=refusals,
        sqlite_where=refusals,
    )
