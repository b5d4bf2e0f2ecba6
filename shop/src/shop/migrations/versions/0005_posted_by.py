"""The customer on whose behalf a transfer was posted: `transfers.posted_by`, and the triggers that check it.

The previous release can run at the same time. It writes no values to the new columns, and its rows pass the triggers.
"""

from pathlib import Path

import sqlalchemy as sa
from alembic import op

from howdah.alembic import run_sql_files

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_FOLDER = Path(__file__).with_suffix("")
_COLUMNS = (("transfers", "posted_by"), ("pending_transfers", "posted_by"), ("pending_transfers", "settled_by"))


def upgrade() -> None:
    for table, column in _COLUMNS:
        op.add_column(table, sa.Column(column, sa.Uuid(), nullable=True))
    run_sql_files(_FOLDER)


def downgrade() -> None:
    """The digests of rows with a value in these columns become wrong, so `shop check` reports these rows."""
    names = [file.name for file in sorted(_FOLDER.glob("*.sql"))]
    run_sql_files(_FOLDER.with_name("0001_initial"), *names)
    for table, column in _COLUMNS:
        op.drop_column(table, column)
