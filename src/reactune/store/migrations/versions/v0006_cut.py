"""Whether a tip is a part of an answer that the limit of tokens ended."""

import sqlalchemy as sa
from alembic import op

revision = "0006_cut"
down_revision = "0005_refusals"


def upgrade() -> None:
    """Add the column; nothing is known of tips before it, which count as whole."""
    op.add_column(
        "tip_scores", sa.Column("cut", sa.Boolean, nullable=False, server_default=sa.false())
    )
