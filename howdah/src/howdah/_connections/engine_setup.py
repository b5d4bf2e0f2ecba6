"""The listeners that make an engine of SQLAlchemy the engine of a `Database`."""

from __future__ import annotations

from sqlalchemy import Engine

from howdah._connections.aborted_transactions import raise_errors_again
from howdah._connections.discarding import discard_unusable_connections
from howdah._connections.options import bound_pre_ping, listen_for_single_statements
from howdah._connections.settings import listen_for_transactions, require_own_connections
from howdah._types.casts import use_exact_casts
from howdah._types.integers import use_exact_integers
from howdah._types.times import use_exact_times


def set_up_engine(
    engine: Engine, *, is_replica: bool, has_role: bool, is_transaction_pooled: bool, ping_seconds: float | None
) -> None:
    """Add the listeners, and limit the ping of an idle connection to `ping_seconds`."""
    discard_unusable_connections(engine, is_replica=is_replica)
    raise_errors_again(engine)
    listen_for_transactions(engine)
    use_exact_times(engine)
    use_exact_integers(engine)
    use_exact_casts(engine)
    if has_role:
        require_own_connections(engine)
    if is_transaction_pooled:
        listen_for_single_statements(engine)
    bound_pre_ping(engine, ping_seconds)
