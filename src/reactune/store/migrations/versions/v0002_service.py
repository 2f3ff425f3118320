"""What the service keeps: the guard's verdict, reactions before their tips, and API keys."""

import sqlalchemy as sa
from alembic import op

revision = "0002_service"
down_revision = "0001"

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Add the column and make the two tables."""
    op.add_column("tip_scores", sa.Column("guard", sa.Text))
    op.create_table(
        "early_reactions",
        sa.Column("tip_id", sa.Text, primary_key=True),
        sa.Column("shown_at", TIME),
        sa.Column("reaction", sa.Text),
        sa.Column("dwell_ms", sa.Integer),
        sa.Column("reacted_at", TIME),
        sa.Column("arrived_at", TIME, nullable=False),
    )
    op.create_table(
        "api_keys",
        sa.Column("key_id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("secret_sha256", sa.Text, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("revoked_at", TIME),
    )
