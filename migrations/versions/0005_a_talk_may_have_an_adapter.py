"""A conversation may have an adapter: the checkpoint whose adapter is laid over the one that answers"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("conversation", sa.Column("adapter_checkpoint_id", sa.String(length=32), nullable=True))


def downgrade() -> None:
    op.drop_column("conversation", "adapter_checkpoint_id")
