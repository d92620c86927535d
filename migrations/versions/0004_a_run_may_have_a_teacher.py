"""A run may have a teacher: the checkpoint whose probabilities the stage distill learns"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("run", sa.Column("teacher_checkpoint_id", sa.String(length=32), nullable=True))


def downgrade() -> None:
    op.drop_column("run", "teacher_checkpoint_id")
