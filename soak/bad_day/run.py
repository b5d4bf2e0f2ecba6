"""A run: start everything, inflict the faults under load, and check."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import select

from howdah import Database
from shop import migrations
from shop.demo import create_demo
from shop.users.models import User
from soak.bad_day import final_checks
from soak.bad_day.clients import start_clients
from soak.bad_day.cluster import AddressKind, Cluster
from soak.bad_day.deployment import Deployment
from soak.bad_day.faults import FAULTS, Fault, Target
from soak.bad_day.lag import LagMeter
from soak.bad_day.model import INITIAL_BALANCE, Model
from soak.bad_day.report import print_report
from soak.bad_day.schedule import PlannedFault
from soak.bad_day.timeline import Inflicted, Timeline
from soak.bad_day.traffic import Traffic
from soak.bad_day.violations import Violations
from soak.bad_day.watch import Recovery, probe_health, probe_readiness, read_resources, watch_memory
from soak.identity import ADMIN
from soak.service import open_funded_accounts

WARM_UP_SECONDS = 8.0
"""The load first runs this long without faults. Then the resources of the service are read, to compare with the end."""
_DEMO_USERS = 3_000
"""Each has ten orders, so an export of all orders is 9 MB. That is more than the kernel buffers."""
_ACCOUNTS = 12
_STOP_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the command."""

    seed: int
    slack: float
    load: float
    idle_seconds: float
    address: AddressKind
    log: Path | None


def run(planned: list[PlannedFault], options: Options) -> bool:
    """Run the schedule, and print the report. Return whether there were no violations."""
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o711)  # PostgreSQL does not run as root: its user must be able to enter the directory
        cluster = Cluster(folder, options.address)
        try:
            return asyncio.run(_run_on(cluster, folder, planned, options))
        finally:
            cluster.stop()


async def _run_on(cluster: Cluster, folder: Path, planned: list[PlannedFault], options: Options) -> bool:
    await _start(cluster)
    deployment = Deployment(cluster.url, options.log or folder / "service.log")
    try:
        return await _run_day(cluster, deployment, planned, options, folder)
    finally:
        deployment.kill_all()


async def _start(cluster: Cluster) -> None:
    print("starting a primary and a standby", flush=True)
    await asyncio.to_thread(cluster.start)
    await asyncio.to_thread(migrations.upgrade, cluster.direct_url)
    async with Database(cluster.direct_url) as database:
        await create_demo(database, users=_DEMO_USERS, seed=1)
    await asyncio.to_thread(cluster.build_standby)


async def _run_day(
    cluster: Cluster, deployment: Deployment, planned: list[PlannedFault], options: Options, folder: Path
) -> bool:
    """Start the service and the load, inflict the faults, and check."""
    await deployment.start()
    model = await _create_model(cluster, deployment)
    timeline, lag = Timeline(), LagMeter()
    violations = Violations(timeline)
    traffic = Traffic(lambda: deployment.address, timeline, violations, lag, options.slack)
    target = Target(cluster, deployment, model, timeline, violations, folder, options.slack)
    async with _background(lag.run()):
        stop = asyncio.Event()
        clients = start_clients(traffic, model, options.seed, stop, options.load)
        print(f"{len(clients)} clients for {WARM_UP_SECONDS:g} s without faults", flush=True)
        await asyncio.sleep(WARM_UP_SECONDS)
        before = read_resources(deployment.current.pid)
        probes = (
            probe_health(traffic, stop),
            probe_readiness(traffic, stop),
            watch_memory(deployment, violations, stop),
        )
        watchers = [asyncio.create_task(each) for each in probes]
        await _inflict_all(target, Recovery(traffic, model), planned)
        print(f"t={timeline.now():.1f} s the last fault is over", flush=True)
        stop.set()
        await asyncio.wait([*clients, *watchers], timeout=_STOP_SECONDS)
        await _end([*clients, *watchers], violations)
    leaks = await _check(
        "leaks", final_checks.check_leaks(cluster, deployment, before, violations, options.idle_seconds), violations
    )
    if await deployment.stop(deployment.current) is None:
        violations.add("stop: killed", f"{deployment.stop_bound:g} s after SIGTERM")
    data = await _check("data", final_checks.check_data(cluster.direct_url, model, violations), violations)
    log = final_checks.check_log(deployment.log, {each.name for each in timeline.inflicted}, violations)
    print_report(timeline, traffic, violations)
    print(
        f"acknowledged: {len(model.posted):,} transfers, {len(model.refused):,} refusals, "
        f"{len(model.orders):,} orders, {len(model.users):,} users, {len(model.uploads):,} uploads; "
        f"{model.replays:,} replays",
        *(data, leaks, log),
        f"the event loop of the run was late by {lag.total:.1f} s in all",
        sep="\n",
    )
    return not violations


async def _check(name: str, check: Coroutine[Any, Any, str], violations: Violations) -> str:
    """Run a check. If it raises an error, record a violation, so that the report is still printed."""
    try:
        return await check
    except Exception as error:
        violations.add(f"the check of the {name} failed", f"{type(error).__name__}: {error}")
        return ""


async def _create_model(cluster: Cluster, deployment: Deployment) -> Model:
    async with httpx.AsyncClient(base_url=deployment.current.address, headers=ADMIN, timeout=20) as client:
        accounts = await open_funded_accounts(client, _ACCOUNTS, INITIAL_BALANCE)
        spare_accounts = await open_funded_accounts(client, _ACCOUNTS, INITIAL_BALANCE * 1_000)
    async with Database(cluster.direct_url, pool_size=1) as database, database.session() as session:
        user_ids = [str(each) for each in await session.scalars(select(User.id).order_by(User.id))]
    return Model(accounts, spare_accounts, user_ids)


async def _inflict_all(target: Target, recovery: Recovery, planned: list[PlannedFault]) -> None:
    """Inflict each fault at its time. A late start or end of one fault doesn't delay the others."""
    origin = target.timeline.now()
    async with asyncio.TaskGroup() as group:
        for each in planned:
            await asyncio.sleep(max(0.0, origin + each.start - target.timeline.now()))
            group.create_task(_inflict(target, recovery, each))


async def _inflict(target: Target, recovery: Recovery, planned: PlannedFault) -> None:
    """Inflict a fault, and measure the recovery.

    If the fault can't be inflicted, that is a violation: the run would test less than its report says.
    """
    timeline = target.timeline
    fault = FAULTS[planned.name](target, random.Random(planned.seed), planned.seconds)
    if fault.needs_small_disk and not target.cluster.has_small_disks:
        print(f"t={timeline.now():.1f} s {planned.name} is left out: it needs root", flush=True)
        return
    details = f" ({fault.details})" if fault.details else ""
    async with AsyncExitStack() as held:
        for group in sorted(fault.groups):  # an earlier fault of the group may take longer than planned
            await held.enter_async_context(target.locks[group])
        print(f"t={timeline.now():.1f} s {planned.name}{details} for {planned.seconds} s", flush=True)
        inflicted = timeline.begin(planned.name, fault.tolerance)
        try:
            async with fault.inflict():
                await asyncio.sleep(planned.seconds)
        except Exception as error:
            target.violations.add(f"fault {planned.name} failed", f"{type(error).__name__}: {error}")
        inflicted.ended = timeline.now()
        await asyncio.gather(recovery.measure(inflicted), _clean_up(fault, target))
    recovered = "not" if inflicted.recovery_seconds is None else f"after {inflicted.recovery_seconds:.1f} s"
    print(
        f"t={timeline.now():.1f} s {planned.name} ended at {inflicted.ended:.1f} s, recovered {recovered}; "
        f"{inflicted.requests:,} requests, {inflicted.unavailable:,} with 5xx {dict(inflicted.reasons) or ''}",
        flush=True,
    )
    _check_share(target, inflicted)


async def _clean_up(fault: Fault, target: Target) -> None:
    try:
        await fault.clean_up()
    except Exception as error:
        target.violations.add(f"fault {fault.name} failed", f"{type(error).__name__}: {error}")


def _check_share(target: Target, inflicted: Inflicted) -> None:
    """Record a violation if too many answers were 503, unless another fault may be the reason."""
    assert inflicted.calm is not None
    share = inflicted.unavailable / max(1, inflicted.requests)
    limit = target.timeline.find_max_unavailable(inflicted.started, inflicted.calm)
    if share > limit:
        target.violations.add(
            f"{inflicted.name}: too many 503",
            f"{inflicted.unavailable:,} of {inflicted.requests:,} requests; the limit is {limit:.0%}; "
            f"{dict(inflicted.reasons)}",
            since=inflicted.started,
        )


async def _end(tasks: list[asyncio.Task[None]], violations: Violations) -> None:
    """Cancel the tasks that haven't ended. Record their errors."""
    for task in tasks:
        if not task.done():
            violations.add("run: a client has not ended", str(task.get_coro()))
            task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            violations.add("run: a client failed", f"{type(result).__name__}: {result}")


@asynccontextmanager
async def _background(coroutine: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(coroutine)
    try:
        yield
    finally:
        task.cancel()
