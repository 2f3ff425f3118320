"""The tables of the operational database, each column written once, times always in UTC."""

from datetime import UTC, datetime

import sqlalchemy as sa

from reactune.errors import DataError

SCHEMA = "0008_pages"
SCHEMA_TABLE = "reactune_schema"


class _NaiveTimeError(DataError, sa.exc.DontWrapMixin):
    """Raised while values are bound; the mixin keeps SQLAlchemy from wrapping it."""


class UtcTime(sa.types.TypeDecorator[datetime]):
    """Timezone-aware times in, UTC times out, whatever the database stores."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """UTC for the database; naive times are refused."""
        if value is not None and value.utcoffset() is None:
            raise _NaiveTimeError(f"{value}: a time without an offset; give it one, such as +00:00")
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """UTC from the database; SQLite stores no offset."""
        if value is None or value.tzinfo is not None:
            return value and value.astimezone(UTC)
        return value.replace(tzinfo=UTC)


metadata = sa.MetaData()

tip_scores = sa.Table(
    "tip_scores",
    metadata,
    sa.Column("tip_id", sa.Text, primary_key=True),
    sa.Column("user_key", sa.Text, nullable=False, index=True),
    sa.Column("key_id", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("source", sa.Text, nullable=False, default="llm"),
    sa.Column("context_json", sa.Text, nullable=False),
    sa.Column("tip_content", sa.Text, nullable=False),
    sa.Column("model_version", sa.Integer),
    sa.Column("arm", sa.Text),
    sa.Column("rollout_id", sa.Text),
    sa.Column("unit_key", sa.Text),
    sa.Column("propensity", sa.Float),
    sa.Column("sampling_json", sa.Text),
    sa.Column("fallback", sa.Text),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("shown_at", UtcTime),
    sa.Column("reaction", sa.Text),
    sa.Column("dwell_ms", sa.Integer),
    sa.Column("reacted_at", UtcTime),
    sa.Column("training_allowed", sa.Boolean, nullable=False, default=True),
    sa.Column("answer_ms", sa.Integer),
    sa.Column("guard", sa.Text),
    sa.Column("cut", sa.Boolean, nullable=False, default=False, server_default=sa.false()),
    sa.Column("choice_json", sa.Text),
    sa.Column("choice_chance", sa.Float),
    sa.CheckConstraint("reaction IN ('done', 'dismiss', 'snooze')", name="known_reaction"),
    sa.CheckConstraint("dwell_ms >= 0", name="dwell_not_negative"),
    sa.CheckConstraint("propensity > 0 AND propensity <= 1", name="propensity_is_chance"),
    sa.Index("ix_tip_scores_rollout_id_shown_at", "rollout_id", "shown_at"),
    sa.Index("ix_tip_scores_created_at", "created_at"),
    sa.Index(
        "ix_tip_scores_refusals",
        "user_key",
        sqlite_where=sa.text("NOT training_allowed"),
        postgresql_where=sa.text("NOT training_allowed"),
    ),
)

model_versions = sa.Table(
    "model_versions",
    metadata,
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("gguf", sa.Text, nullable=False),
    sa.Column("sha256", sa.Text, nullable=False),
    sa.Column("prompt_folder", sa.Text, nullable=False),
    sa.Column("base", sa.Text, nullable=False),
    sa.Column("quantisation", sa.Text, nullable=False),
    sa.Column("adapter", sa.Text),
    sa.Column("reward", sa.Text),
    sa.Column("created_at", UtcTime, nullable=False),
)

rollouts = sa.Table(
    "rollouts",
    metadata,
    sa.Column("rollout_id", sa.Text, primary_key=True),
    sa.Column("champion", sa.Integer, sa.ForeignKey("model_versions.version"), nullable=False),
    sa.Column("challenger", sa.Integer, sa.ForeignKey("model_versions.version")),
    sa.Column("phase", sa.Text, nullable=False),
    sa.Column("share", sa.Float, nullable=False),
    sa.Column("salt", sa.Text, nullable=False),
    sa.Column("unit", sa.Text, nullable=False),
    sa.Column("planned_units", sa.Integer, nullable=False),
    sa.Column("opened_at", UtcTime, nullable=False),
    sa.Column("share_since", UtcTime, nullable=False),
    sa.Column("closed_at", UtcTime),
    sa.Column("verdict", sa.Text),
    sa.Index(
        "one_open_rollout",
        sa.text("(closed_at IS NULL)"),
        unique=True,
        postgresql_where=sa.text("closed_at IS NULL"),
        sqlite_where=sa.text("closed_at IS NULL"),
    ),
)

decisions = sa.Table(
    "decisions",
    metadata,
    sa.Column("decision_id", sa.Integer, primary_key=True),
    sa.Column(
        "rollout_id", sa.Text, sa.ForeignKey("rollouts.rollout_id"), nullable=False, index=True
    ),
    sa.Column("at", UtcTime, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("verdict", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("numbers_json", sa.Text, nullable=False),
)

silent_answers = sa.Table(
    "silent_answers",
    metadata,
    sa.Column("answer_id", sa.Text, primary_key=True),
    sa.Column(
        "rollout_id", sa.Text, sa.ForeignKey("rollouts.rollout_id"), nullable=False, index=True
    ),
    sa.Column("verdict", sa.Text, nullable=False),
    sa.Column("answer_ms", sa.Integer, nullable=False),
    sa.Column("prompt_tokens", sa.Integer, nullable=False),
    sa.Column("tokens_read", sa.Integer),
    sa.Column("at", UtcTime, nullable=False),
)

early_reactions = sa.Table(
    "early_reactions",
    metadata,
    sa.Column("tip_id", sa.Text, primary_key=True),
    sa.Column("shown_at", UtcTime),
    sa.Column("reaction", sa.Text),
    sa.Column("dwell_ms", sa.Integer),
    sa.Column("reacted_at", UtcTime),
    sa.Column("arrived_at", UtcTime, nullable=False),
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("key_id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("scopes", sa.Text, nullable=False),
    sa.Column("secret_sha256", sa.Text, nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("revoked_at", UtcTime),
)

# `mark` names a user in these tables. It is a keyed hash of a user_key: no user_key of an erased
# user is stored anywhere, and yet the user is recognised when they come back.
consents = sa.Table(
    "consents",
    metadata,
    sa.Column("mark", sa.Text, primary_key=True),
    sa.Column("key_id", sa.Text, nullable=False),
    sa.Column("training_allowed", sa.Boolean, nullable=False),
    sa.Column("decided_at", UtcTime, nullable=False),
)

tombstones = sa.Table(
    "tombstones",
    metadata,
    sa.Column("mark", sa.Text, primary_key=True),
    sa.Column("key_id", sa.Text, nullable=False),
    sa.Column("erased_at", UtcTime, nullable=False),
)

erased_prints = sa.Table(
    "erased_prints",
    metadata,
    sa.Column("mark", sa.Text, primary_key=True),
    sa.Column("print", sa.Text, primary_key=True, index=True),
)

retrainings = sa.Table(
    "retrainings",
    metadata,
    sa.Column("version", sa.Integer, sa.ForeignKey("model_versions.version"), primary_key=True),
    sa.Column("retrain_by", UtcTime, nullable=False),
)

erasures = sa.Table(
    "erasures",
    metadata,
    sa.Column("erasure_id", sa.Text, primary_key=True),
    sa.Column("scope", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("asked_at", UtcTime, nullable=False),
    sa.Column("older_than", UtcTime),
    sa.Column("targets_json", sa.Text, nullable=False),
    sa.Column("runs_json", sa.Text, nullable=False),
    sa.Column("steps_json", sa.Text, nullable=False),
    sa.Column("numbers_json", sa.Text, nullable=False),
    sa.Column("finished_at", UtcTime),
)

# What the pages read in place of run folders and of a million rows: counts and figures, no texts.
stage_summaries = sa.Table(
    "stage_summaries",
    metadata,
    sa.Column("subject", sa.Text, primary_key=True),
    sa.Column("stage", sa.Text, primary_key=True),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("line", sa.Text, nullable=False),
    sa.Column("counts_json", sa.Text, nullable=False),
    sa.Column("figures_json", sa.Text, nullable=False),
    sa.Column("lineage_json", sa.Text, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("finished_at", UtcTime, nullable=False),
)

reaction_days = sa.Table(
    "reaction_days",
    metadata,
    sa.Column("day", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("source", sa.Text, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("tips", sa.Integer, nullable=False),
    sa.Column("shown", sa.Integer, nullable=False),
    sa.Column("positives", sa.Integer, nullable=False),
    sa.Column("negatives", sa.Integer, nullable=False),
    sa.Column("dwell_json", sa.Text, nullable=False),
)

page_sessions = sa.Table(
    "page_sessions",
    metadata,
    sa.Column("token_sha256", sa.Text, primary_key=True),
    sa.Column("key_id", sa.Text, nullable=False),
    sa.Column("expires_at", UtcTime, nullable=False),
)

page_actions = sa.Table(
    "page_actions",
    metadata,
    sa.Column("action_id", sa.Integer, primary_key=True),
    sa.Column("at", UtcTime, nullable=False),
    sa.Column("key_id", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("outcome", sa.Text, nullable=False),
)
