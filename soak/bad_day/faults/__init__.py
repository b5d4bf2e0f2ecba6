"""The faults. `FAULTS` has each of them by its name."""

from __future__ import annotations

from typing import Final

from soak.bad_day.faults.fault import Fault, Target
from soak.bad_day.faults.hostile_clients import AbandonedRequests, GiantHeaders, HugeBody, Overload
from soak.bad_day.faults.locks import LockedAccounts, LockedUsers, Migration
from soak.bad_day.faults.processes import KilledService, RollingRestart, StopWhileFrozen, UnreadLog
from soak.bad_day.faults.servers import (
    Failover,
    FrozenBackends,
    FrozenServer,
    FullDisk,
    KilledBackend,
    KilledPostmaster,
    TerminatedBackends,
)
from soak.bad_day.faults.slow_clients import (
    IdleConnections,
    SlowBodies,
    SlowExports,
    SlowHeaders,
    StalledUploads,
    UnreadAnswers,
)

__all__ = ["FAULTS", "Fault", "Target"]

FAULTS: Final[dict[str, type[Fault]]] = {
    each.name: each
    for each in (
        StalledUploads,
        SlowExports,
        UnreadAnswers,
        SlowHeaders,
        SlowBodies,
        IdleConnections,
        HugeBody,
        GiantHeaders,
        AbandonedRequests,
        Overload,
        LockedUsers,
        LockedAccounts,
        Migration,
        FrozenBackends,
        FrozenServer,
        KilledBackend,
        KilledPostmaster,
        TerminatedBackends,
        FullDisk,
        Failover,
        KilledService,
        RollingRestart,
        StopWhileFrozen,
        UnreadLog,
    )
}
