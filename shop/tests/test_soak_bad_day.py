"""The schedule and the checks of `soak.bad_day`. Each check is tested with an answer that breaks its rule."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import socket
import struct
from pathlib import Path
from uuid import uuid4

import pytest

from soak.bad_day import final_checks, rules
from soak.bad_day.lag import LagMeter
from soak.bad_day.model import INITIAL_BALANCE, UPLOAD_USERS, AcknowledgedTransfer, Model
from soak.bad_day.schedule import CALM_SECONDS, plan_faults
from soak.bad_day.timeline import UNLIMITED, Timeline, Tolerance
from soak.bad_day.traffic import Client, Traffic
from soak.bad_day.violations import Violations
from soak.bad_day.wire import Address, Answer

GROUPS = {
    "a": frozenset[str](),
    "b": frozenset({"server"}),
    "c": frozenset({"server", "process"}),
    "d": frozenset[str](),
    "e": frozenset({"process"}),
}
PROBLEM = b'{"type": "urn:howdah:problem:overloaded", "title": "Service Unavailable", "status": 503}'
PROBLEM_HEADERS = {"content-type": "application/problem+json", "retry-after": "2"}


def test_the_same_seed_gives_the_same_schedule() -> None:
    assert plan_faults(7, 300, GROUPS) == plan_faults(7, 300, GROUPS)
    assert plan_faults(7, 300, GROUPS) != plan_faults(8, 300, GROUPS)


@pytest.mark.parametrize("seed", range(20))
def test_each_fault_occurs_and_faults_of_a_group_never_overlap(seed: int) -> None:
    planned = plan_faults(seed, 300, GROUPS)
    assert {each.name for each in planned} == GROUPS.keys()
    for first in planned:
        for second in planned:
            if first is not second and GROUPS[first.name] & GROUPS[second.name]:
                assert first.start + first.seconds + CALM_SECONDS <= second.start or first.start > second.start
    assert [each.start for each in planned] == sorted(each.start for each in planned)


def test_with_one_fault_per_round_no_faults_overlap() -> None:
    planned = plan_faults(1, 300, GROUPS, max_per_round=1)
    assert all(
        first.start + first.seconds + CALM_SECONDS <= second.start + 0.1
        for first, second in itertools.pairwise(planned)
    )


@pytest.mark.parametrize(
    ("answer", "violations"),
    [
        (Answer(200, {}, b"{}"), []),
        (Answer(503, PROBLEM_HEADERS, PROBLEM), []),
        (Answer(503, {"content-type": "application/problem+json"}, PROBLEM), ["503 without a valid Retry-After"]),
        (Answer(503, {**PROBLEM_HEADERS, "retry-after": "0"}, PROBLEM), ["503 without a valid Retry-After"]),
        (Answer(503, {"retry-after": "1"}, b"Service Unavailable"), ["503 without problem details"]),
        (Answer(503, PROBLEM_HEADERS, b"{}"), ["503 with incomplete problem details"]),
        (Answer(500, {}, b""), ["status 500", "500 without problem details"]),
        (Answer(404, PROBLEM_HEADERS, PROBLEM), ["status 404", "404 with incomplete problem details"]),
    ],
)
def test_an_answer_that_breaks_a_rule_is_found(answer: Answer, violations: list[str]) -> None:
    assert rules.find_violations(rules.READ, answer) == violations


def test_a_fault_allows_only_the_effects_in_its_tolerance() -> None:
    timeline = Timeline()
    harmless = timeline.begin("slow", Tolerance())
    assert not timeline.allows_unready(0, timeline.now())
    assert timeline.find_max_unavailable(0, timeline.now()) == 0.05
    timeline.begin("another", Tolerance(max_unavailable=0.25)).calm = timeline.now()
    assert timeline.find_max_unavailable(0, timeline.now()) == pytest.approx(0.3)
    severe = timeline.begin("severe", Tolerance(max_unavailable=UNLIMITED, may_be_unready=True))
    assert timeline.allows_unready(0, timeline.now())
    assert timeline.find_max_unavailable(0, timeline.now()) == 1
    assert not timeline.allows_breaks(0, timeline.now())
    harmless.calm = severe.calm = timeline.now()
    after = timeline.now()
    assert not timeline.find_overlapping(after + 1, after + 2)
    assert [each.name for each in timeline.find_overlapping(0, after + 2)] == [
        "slow",
        "another",
        "severe",
    ]  # a request that began before the end


def test_a_time_without_a_database_is_recognised() -> None:
    timeline = Timeline()
    with timeline.database_unusable():
        started = timeline.now()
        assert timeline.was_unusable(started, timeline.now())
    assert timeline.was_unusable(started, started)
    assert not timeline.was_unusable(started, timeline.now() + 1)


# A server that breaks the rules, by path. `wire` reports how each answer ended.
_BREAKING = {
    "/users/500": b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n",
    "/users/truncated": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}",
    "/users/reset": b"",
    "/users/503": b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nRetry-After: 1\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(PROBLEM), PROBLEM),
    "/users/good": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
}


async def break_rules(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    path = head.split()[1].decode()
    if path == "/users/late":
        await reader.read()
    writer.write(_BREAKING.get(path, b""))
    if path == "/users/reset":
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


@pytest.mark.parametrize(
    ("path", "expected", "expected_during_fault"),
    [
        ("/users/good", set(), set()),
        ("/users/500", {"read: status 500", "read: 500 without problem details"}, None),
        ("/users/503", {"read: 503 without a fault"}, set()),
        ("/users/truncated", {"read: closed without a fault"}, set()),
        ("/users/reset", {"read: reset"}, None),
        ("/users/late", {"read: late"}, None),
    ],
)
async def test_a_server_that_breaks_a_rule_is_found(
    path: str, expected: set[str], expected_during_fault: set[str] | None
) -> None:
    """A fault of the database excuses a 503 and a closed connection, but nothing else."""
    handlers: list[asyncio.Task[None]] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handlers.append(task)
        await break_rules(reader, writer)

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        address = Address(*server.sockets[0].getsockname())

        async def find(timeline: Timeline) -> set[str]:
            violations = Violations(timeline)
            traffic = Traffic(lambda: address, timeline, violations, LagMeter(), slack=0.01)
            client = Client(traffic, random.Random(1))
            await client.send(rules.READ, "GET", path)
            client.close()
            return set(violations.found)

        assert await find(Timeline()) == expected
        timeline = Timeline()
        timeline.begin("failover", Tolerance(max_unavailable=UNLIMITED, may_be_unready=True))
        assert await find(timeline) == (expected if expected_during_fault is None else expected_during_fault)
        await asyncio.gather(*handlers)


def make_model() -> Model:
    return Model([str(uuid4()), str(uuid4())], [], [])


def test_balances_follow_from_the_acknowledged_transfers() -> None:
    model = make_model()
    first, second = model.accounts
    model.posted["key"] = AcknowledgedTransfer(uuid4(), first, second, 300)
    assert model.compute_balances() == {first: INITIAL_BALANCE - 300, second: INITIAL_BALANCE + 300}


def test_lost_and_partial_users_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model()
    model.users["one-1@example.com"] = "id"
    model.uploads["many-1"] = UPLOAD_USERS
    complete = [f"many-1-{number}@example.com" for number in range(UPLOAD_USERS)]

    def find(emails: list[str]) -> set[str]:
        violations = Violations(Timeline())
        final_checks.check_users(emails, model, violations)
        return set(violations.found)

    assert find(["one-1@example.com", *complete]) == set()
    assert find(complete) == {"users: acknowledged and lost"}
    assert find(["one-1@example.com"]) == {"uploads: acknowledged and lost"}
    assert find(["one-1@example.com", *complete[1:]]) == {"uploads: stored in part", "uploads: acknowledged and lost"}
    unfinished = find(["one-1@example.com", *complete, "unfinished-1-0@example.com"])
    assert unfinished == {"uploads: stored although never finished"}
    assert "VIOLATION" in capsys.readouterr().out


def test_errors_in_the_log_are_found_once_for_each_kind(tmp_path: Path) -> None:
    entries = [
        {"level": "info", "event": "request"},
        {"level": "error", "event": "unexpected error", "exception": "Traceback\n  line 1\nValueError: 0x7f01 of 12"},
        {"level": "error", "event": "unexpected error", "exception": "Traceback\n  line 1\nValueError: 0x7f02 of 13"},
        {"level": "error", "event": "the job 'link-seals' failed", "exception": "howdah.errors.ConnectionLost: gone"},
        {"level": "error", "event": "the job 'link-seals' failed, 2 times in a row: ConnectionLost: gone"},
        {"level": "error", "event": "the job 'link-seals' failed, 2 times in a row: KeyError: 'gone'"},
        {"level": "error", "event": "40 requests did not end in time, and are cancelled"},
    ]
    log = tmp_path / "service.log"
    log.write_text("\n".join(map(json.dumps, entries)) + "\nFatal Python error\n")
    violations = Violations(Timeline())
    final_checks.check_log(log, {"stop-while-frozen"}, violations)
    assert set(violations.found) == {
        "log: unexpected error: ValueError: … of …",
        "log: the job 'link-seals' failed, … times in a row: KeyError: 'gone': ",
        "log: not JSON: Fatal Python error",
    }
    final_checks.check_log(log, set(), violations)
    assert "log: … requests did not end in time, and are cancelled: " in violations.found
