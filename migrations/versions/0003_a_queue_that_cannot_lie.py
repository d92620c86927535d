"""The database refuses illegal moves itself; the queue can be ordered and paused; hosts say what is wrong with them

Guards are not history but what the program demands: a revision that changes them installs the present ones.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from app.core import guards

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

COLUMNS = {
    "installation": (("code_version", sa.String(length=64)), ("home_host", sa.String(length=64)),
                     ("queue_paused_at", sa.Float()), ("queue_paused_by", sa.String(length=100)),
                     ("queue_note", sa.Text())),
    "host": (("problem", sa.Text()), ("bad_devices", sa.JSON())),
    "run": (("queue_key", sa.Float()),),
    "attempt": (("error", sa.JSON()),),
    "checkpoint": (("problem", sa.Text()), ("save_s", sa.Float())),
    "dataset": (("stamp", sa.String(length=60)),),
}


def upgrade() -> None:
    for table, columns in COLUMNS.items():
        for name, kind in columns:
            op.add_column(table, sa.Column(name, kind, nullable=True))
    op.execute("UPDATE run SET queue_key = queued_at")
    op.drop_index("run_queue", table_name="run")
    op.create_index("run_queue", "run", ["state", "priority", "queue_key"], unique=False)
    op.create_index("run_newest", "run", ["created_at", "id"], unique=False)
    op.create_index("run_changed", "run", ["updated_at"], unique=False)
    op.create_table(
        "run_move",
        sa.Column("from_state", sa.String(length=12), nullable=False),
        sa.Column("to_state", sa.String(length=12), nullable=False),
        sa.PrimaryKeyConstraint("from_state", "to_state"),
    )
    guards.install(op.get_bind())


def downgrade() -> None:
    guards.remove(op.get_bind())
    op.drop_table("run_move")
    op.drop_index("run_changed", table_name="run")
    op.drop_index("run_newest", table_name="run")
    op.drop_index("run_queue", table_name="run")
    op.create_index("run_queue", "run", ["state", "priority", "queued_at"], unique=False)
    for table, columns in COLUMNS.items():
        for name, _ in columns:
            op.drop_column(table, name)
