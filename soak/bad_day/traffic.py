"""Ordinary requests: each one is sent, timed, counted and checked."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from soak.bad_day import rules
from soak.bad_day.lag import LagMeter
from soak.bad_day.rules import Kind
from soak.bad_day.timeline import Timeline
from soak.bad_day.violations import Violations
from soak.bad_day.wire import Address, Answer, Closed, Connection, NoAnswer, Refused, Reset, build_request

_GIVE_UP_FACTOR = 1.5
"""A client waits this much longer than the bound, to see whether there is a late answer or none."""
_RETRY_SECONDS = (0.1, 0.5)
_PROBES = (rules.HEALTH, rules.READINESS)
# Uploads and exports have a limit of their own, which the slow clients reach on purpose.
_NOT_COUNTED = (*_PROBES, rules.BULK, rules.EXPORT)
_IN_USE = "idempotency-key-in-use"


@dataclass
class Traffic:
    """The state that all clients share. `slack` multiplies the bounds, for a busy machine."""

    find_address: Callable[[], Address]
    """Returns the current address of the service."""
    timeline: Timeline
    violations: Violations
    lag: LagMeter
    slack: float = 1.0
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """The number of requests by kind and outcome: the status, or the reason why there was no answer."""
    slowest: dict[str, float] = field(default_factory=dict)

    def record(self, kind: Kind, started: float, seconds: float, outcome: str, reason: str) -> None:
        """Count a request, also for each fault that was active. `reason` is the problem type of a 503."""
        self.outcomes[kind.name, outcome] += 1
        self.slowest[kind.name] = max(self.slowest.get(kind.name, 0.0), seconds)
        if kind in _NOT_COUNTED:
            return
        for each in self.timeline.find_overlapping(started, self.timeline.now()):
            each.requests += 1
            if outcome.startswith("5"):
                each.unavailable += 1
                each.reasons[reason] += 1
            each.slowest = max(each.slowest, seconds)


class Client:
    """A client with one keep-alive connection."""

    def __init__(self, traffic: Traffic, rng: random.Random) -> None:
        self._traffic = traffic
        self._connection: Connection | None = None
        self.rng = rng

    async def send(
        self,
        kind: Kind,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer | None:
        """Send a request once, and record its violations. Return None if there was no answer."""
        traffic = self._traffic
        started, lag = traffic.timeline.now(), traffic.lag.total
        bound = kind.bound * traffic.slack
        answer: Answer | None = None
        error: NoAnswer | None = None
        outcome = "no answer"
        try:
            async with asyncio.timeout(bound * _GIVE_UP_FACTOR):
                if self._connection is None or not self._connection.is_usable:
                    self._connection = await Connection.open(traffic.find_address())
                answer = await self._connection.send(build_request(method, path, headers, body))
                outcome = str(answer.status)
        except NoAnswer as problem:
            error, outcome = problem, type(problem).__name__.lower()
        except TimeoutError:
            self._connection = None
        seconds = max(0.0, traffic.timeline.now() - started - (traffic.lag.total - lag))
        traffic.record(kind, started, seconds, outcome, rules.shorten_problem_type(answer) if answer else "")
        self._check(kind, f"{method} {path.partition('?')[0]}", started, seconds, answer or error)
        return answer

    def _check(
        self, kind: Kind, request: str, started: float, seconds: float, result: Answer | NoAnswer | None
    ) -> None:
        """Record the rules that the result of a request breaks, and those that it breaks only without a fault."""
        timeline, violations = self._traffic.timeline, self._traffic.violations
        bound, now = kind.bound * self._traffic.slack, timeline.now()
        # A process that is starting accepts connections before it can answer.
        is_starting = kind in _PROBES and timeline.allows_breaks(started, now)
        if seconds > bound and not is_starting:
            what = str(result.status) if isinstance(result, Answer) else "no answer"
            violations.add(f"{kind.name}: late", f"{request}: {what} after {seconds:.1f} s", since=started)
        if isinstance(result, Answer):
            for violation in rules.find_violations(kind, result):
                start_of_body = result.body[:200].decode(errors="replace")
                violations.add(f"{kind.name}: {violation}", f"{request}: {start_of_body}", since=started)
            if result.status == rules.UNAVAILABLE and kind is not rules.READINESS and self._is_calm(started, now):
                problem = rules.read_problem_type(result)
                violations.add(f"{kind.name}: 503 without a fault", f"{request}: {problem}", since=started)
        elif isinstance(result, Reset | Refused) and not timeline.allows_breaks(started, now):
            violations.add(f"{kind.name}: {type(result).__name__.lower()}", f"{request}: {result}", since=started)
        elif isinstance(result, Closed) and self._is_calm(started, now):
            violations.add(f"{kind.name}: closed without a fault", f"{request}: {result}", since=started)

    def _is_calm(self, start: float, end: float) -> bool:
        return not self._traffic.timeline.find_overlapping(start, end)

    async def send_until_answered(
        self,
        kind: Kind,
        method: str,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        *,
        stop: asyncio.Event,
        seconds_after_stop: float = 30.0,
    ) -> Answer | None:
        """Send the same request until there is a final answer: a status that its kind allows.

        A 409 because the first request with this key is still running isn't final. If there is no final answer
        `seconds_after_stop` after the end of the run, record a violation, and return None.
        """
        deadline: float | None = None
        while True:
            answer = await self.send(kind, method, path, body, headers)
            if answer is not None and answer.status in kind.statuses and not self._is_running(answer):
                return answer
            if stop.is_set():
                deadline = deadline or self._traffic.timeline.now() + seconds_after_stop
                if self._traffic.timeline.now() > deadline:
                    last = "nothing" if answer is None else str(answer.status)
                    self._traffic.violations.add(f"{kind.name}: never answered", f"{method} {path}: {last} at last")
                    return None
            await asyncio.sleep(self.rng.uniform(*_RETRY_SECONDS))

    @staticmethod
    def _is_running(answer: Answer) -> bool:
        return rules.read_problem_type(answer).endswith(_IN_USE)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.abort()
