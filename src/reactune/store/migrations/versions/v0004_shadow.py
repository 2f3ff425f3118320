"""Shadow answers of a challenger: how it did, neither the text nor the user."""

import sqlalchemy as sa
from alembic import op

revision = "0004_shadow"
down_revision = "0003_erasure"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "silent_answers",
        sa.Column("answer_id", sa.Text, primary_key=True),
        sa.Column("rollout_id", sa.Text, sa.ForeignKey("rollouts.rollout_id"), nullable=False),
        sa.Column("verdict", sa.Text, nullable=False),
        sa.Column("answer_ms", sa.Integer, nullable=False),
        sa.Column("prompt_tokens", sa.Integer, nullable=False),
        sa.Column("tokens_read", sa.Integer),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_silent_answers_rollout_id", "silent_answers", ["rollout_id"])
