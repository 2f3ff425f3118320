"""What the pages read: summaries of stages and counts by day; sessions, and what was done."""

import sqlalchemy as sa
from alembic import op

revision = "0008_pages"
down_revision = "0007_choice"

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make the four tables, and the index by which tips are counted by day."""
    op.create_index("ix_tip_scores_created_at", "tip_scores", ["created_at"])
    op.create_table(
        "stage_summaries",
        sa.Column("subject", sa.Text, primary_key=True),
        sa.Column("stage", sa.Text, primary_key=True),
        *_texts("outcome", "line", "counts_json", "figures_json", "lineage_json"),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("finished_at", TIME, nullable=False),
    )
    op.create_table(
        "reaction_days",
        sa.Column("day", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("source", sa.Text, primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("tips", sa.Integer, nullable=False),
        sa.Column("shown", sa.Integer, nullable=False),
        sa.Column("positives", sa.Integer, nullable=False),
        sa.Column("negatives", sa.Integer, nullable=False),
        *_texts("dwell_json"),
    )
    op.create_table(
        "page_sessions",
        sa.Column("token_sha256", sa.Text, primary_key=True),
        *_texts("key_id"),
        sa.Column("expires_at", TIME, nullable=False),
    )
    op.create_table(
        "page_actions",
        sa.Column("action_id", sa.Integer, primary_key=True),
        sa.Column("at", TIME, nullable=False),
        *_texts("key_id", "action", "subject", "reason", "outcome"),
    )


def _texts(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text, nullable=False) for name in names]
