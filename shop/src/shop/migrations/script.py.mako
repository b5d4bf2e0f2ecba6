"""${message}"""

from pathlib import Path

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
from shop.sql_files import execute_sql_files

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}
    # the changed functions and triggers: the .sql files in the folder with this migration's name, if there is one
    execute_sql_files(op.get_bind(), Path(__file__).with_suffix(""))


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
