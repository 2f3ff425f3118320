"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make the four tables and their indexes."""
    _make_tip_scores()
    _make_model_versions()
    _make_rollouts()
    _make_decisions()


def _make_tip_scores() -> None:
    op.create_table(
        "tip_scores",
        sa.Column("tip_id", sa.Text, primary_key=True),
        sa.Column("user_key", sa.Text, nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("context_json", sa.Text, nullable=False),
        sa.Column("tip_content", sa.Text, nullable=False),
        sa.Column("model_version", sa.Integer),
        sa.Column("arm", sa.Text),
        sa.Column("rollout_id", sa.Text),
        sa.Column("unit_key", sa.Text),
        sa.Column("propensity", sa.Float),
        sa.Column("sampling_json", sa.Text),
        sa.Column("fallback", sa.Text),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("shown_at", TIME),
        sa.Column("reaction", sa.Text),
        sa.Column("dwell_ms", sa.Integer),
        sa.Column("reacted_at", TIME),
        sa.Column("training_allowed", sa.Boolean, nullable=False),
        sa.Column("answer_ms", sa.Integer),
        sa.CheckConstraint("reaction IN ('done', 'dismiss', 'snooze')", name="known_reaction"),
        sa.CheckConstraint("dwell_ms >= 0", name="dwell_not_negative"),
        sa.CheckConstraint("propensity > 0 AND propensity <= 1", name="propensity_is_chance"),
    )
    op.create_index("ix_tip_scores_user_key", "tip_scores", ["user_key"])
    op.create_index("ix_tip_scores_rollout_id_shown_at", "tip_scores", ["rollout_id", "shown_at"])


def _make_model_versions() -> None:
    op.create_table(
        "model_versions",
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("gguf", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("prompt_folder", sa.Text, nullable=False),
        sa.Column("base", sa.Text, nullable=False),
        sa.Column("quantisation", sa.Text, nullable=False),
        sa.Column("adapter", sa.Text),
        sa.Column("created_at", TIME, nullable=False),
    )


def _make_rollouts() -> None:
    op.create_table(
        "rollouts",
        sa.Column("rollout_id", sa.Text, primary_key=True),
        sa.Column("champion", sa.Integer, sa.ForeignKey("model_versions.version"), nullable=False),
        sa.Column("challenger", sa.Integer, sa.ForeignKey("model_versions.version")),
        sa.Column("phase", sa.Text, nullable=False),
        sa.Column("share", sa.Float, nullable=False),
        sa.Column("salt", sa.Text, nullable=False),
        sa.Column("unit", sa.Text, nullable=False),
        sa.Column("planned_units", sa.Integer, nullable=False),
        sa.Column("opened_at", TIME, nullable=False),
        sa.Column("share_since", TIME, nullable=False),
        sa.Column("closed_at", TIME),
        sa.Column("verdict", sa.Text),
    )
    op.create_index(
        "one_open_rollout",
        "rollouts",
        [sa.text("(closed_at IS NULL)")],
        unique=True,
        postgresql_where=sa.text("closed_at IS NULL"),
        sqlite_where=sa.text("closed_at IS NULL"),
    )


def _make_decisions() -> None:
    op.create_table(
        "decisions",
        sa.Column("decision_id", sa.Integer, primary_key=True),
        sa.Column("rollout_id", sa.Text, sa.ForeignKey("rollouts.rollout_id"), nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("verdict", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("numbers_json", sa.Text, nullable=False),
    )
    op.create_index("ix_decisions_rollout_id", "decisions", ["rollout_id"])
