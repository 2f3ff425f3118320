"""The reward model of a version, the candidates among which it chose, and the chance of a tip."""

import sqlalchemy as sa
from alembic import op

revision = "0007_choice"
down_revision = "0006_cut"


def upgrade() -> None:
    """Add the columns; versions before them have no reward, and of their tips none was chosen."""
    op.add_column("model_versions", sa.Column("reward", sa.Text))
    op.add_column("tip_scores", sa.Column("choice_json", sa.Text))
    op.add_column("tip_scores", sa.Column("choice_chance", sa.Float))
