"""Consents, tombstones, the journal of erasures, and the versions that are to be replaced."""

import sqlalchemy as sa
from alembic import op

revision = "0003_erasure"
down_revision = "0002_service"

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make the five tables."""
    op.create_table(
        "consents",
        sa.Column("mark", sa.Text, primary_key=True),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("training_allowed", sa.Boolean, nullable=False),
        sa.Column("decided_at", TIME, nullable=False),
    )
    op.create_table(
        "tombstones",
        sa.Column("mark", sa.Text, primary_key=True),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("erased_at", TIME, nullable=False),
    )
    op.create_table(
        "erased_prints",
        sa.Column("mark", sa.Text, primary_key=True),
        sa.Column("print", sa.Text, primary_key=True),
    )
    op.create_index("ix_erased_prints_print", "erased_prints", ["print"])
    op.create_table(
        "retrainings",
        sa.Column("version", sa.Integer, sa.ForeignKey("model_versions.version"), primary_key=True),
        sa.Column("retrain_by", TIME, nullable=False),
    )
    op.create_table(
        "erasures",
        sa.Column("erasure_id", sa.Text, primary_key=True),
        sa.Column("scope", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("asked_at", TIME, nullable=False),
        sa.Column("older_than", TIME),
        sa.Column("targets_json", sa.Text, nullable=False),
        sa.Column("runs_json", sa.Text, nullable=False),
        sa.Column("steps_json", sa.Text, nullable=False),
        sa.Column("numbers_json", sa.Text, nullable=False),
        sa.Column("finished_at", TIME),
    )
