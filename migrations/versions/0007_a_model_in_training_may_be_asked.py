"""A model that is being trained may be asked to speak: how often the present attempt was"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("run", sa.Column("samples_asked", sa.Integer(), server_default="0", nullable=False))


def downgrade() -> None:
    op.drop_column("run", "samples_asked")
