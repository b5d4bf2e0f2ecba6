"""A log that nobody reads, or that can't be written, blocks nothing and is counted."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.context import Context

from howdah import _log_writer
from howdah._log_fields import AddTraceId
from howdah._log_writer import ThreadedWriter, dropped_lines, open_standard_error, share_lines
from howdah_tests.support.waiting import wait_until

SERVER = """
import socket, sys, uvicorn
from howdah import logs
from fastapi import FastAPI
from howdah import Database
from howdah.fastapi import configure_app
from starlette.responses import PlainTextResponse

class BlockingWriter:
    def write(self, line):
        sys.stderr.buffer.write(line)
        sys.stderr.flush()

if sys.argv[1] == "blocking":
    logs.open_standard_error = lambda _: BlockingWriter()
logs.configure_logging("json")
listening = socket.socket()
listening.bind(("127.0.0.1", 0))
listening.listen()
app = FastAPI()
app.mount("/", PlainTextResponse("ok"))
configure_app(app, database=lambda: Database("postgresql://nobody@127.0.0.1:1/nothing"))
config = uvicorn.Config(app, log_config=None, lifespan="off")
print(listening.getsockname()[1], flush=True)
uvicorn.Server(config).run(sockets=[listening])
"""
REQUESTS = 2000
# The limit after which a server counts as blocked. A server that isn't blocked takes a second.
SECONDS = 20.0


@contextlib.contextmanager
def server_with_unread_log(writer: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A server whose standard error is a pipe that nobody reads."""
    unread, standard_error = os.pipe()
    command = [sys.executable, "-c", SERVER, writer]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=standard_error) as process:
        os.close(standard_error)
        try:
            assert process.stdout is not None
            yield process, int(process.stdout.readline())
        finally:
            process.kill()
            os.close(unread)


def count_responses(port: int, seconds: float) -> int:
    """Send requests until one isn't answered in time."""
    connection = HTTPConnection("127.0.0.1", port, timeout=seconds)
    with contextlib.closing(connection):
        for number in range(REQUESTS):
            try:
                connection.request("GET", "/items")
                assert connection.getresponse().read() == b"ok"
            except TimeoutError:
                return number
    return REQUESTS


def test_a_server_whose_log_is_not_read_answers_and_stops() -> None:
    with server_with_unread_log("threaded") as (process, port):
        assert count_responses(port, SECONDS) == REQUESTS
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) in (0, -signal.SIGTERM)


def test_control_a_server_that_writes_its_log_itself_freezes_and_ignores_sigterm() -> None:
    with server_with_unread_log("blocking") as (process, port):
        assert 0 < count_responses(port, 0.5) < REQUESTS
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)


@contextlib.contextmanager
def pipe_and_writer(max_lines: int = 100_000) -> Iterator[tuple[int, ThreadedWriter]]:
    reading, writing = os.pipe()
    writer = ThreadedWriter(writing, lambda lines: f"dropped {lines}\n".encode(), max_lines=max_lines)
    os.close(writing)
    try:
        yield reading, writer
    finally:
        with contextlib.suppress(OSError):
            os.close(reading)
        writer.close()


def read_all(descriptor: int, writer: ThreadedWriter) -> list[str]:
    """Read until the writer has closed its end."""
    chunks: list[bytes] = []
    closing = threading.Thread(target=writer.close)
    closing.start()
    while chunk := os.read(descriptor, 65536):
        chunks.append(chunk)
    closing.join(SECONDS)
    return b"".join(chunks).decode().splitlines()


def test_dropped_lines_are_counted_and_the_log_says_so_when_it_is_read_again() -> None:
    with pipe_and_writer(max_lines=50) as (reading, writer):
        for number in range(5000):
            writer.write(f"{number:0100}\n".encode())
        dropped = writer.dropped
        assert 0 < dropped < 5000
        assert dropped_lines() >= dropped
        lines: list[str] = []
        with os.fdopen(os.dup(reading)) as stream:
            while not lines or not lines[-1].startswith("dropped"):
                lines.append(stream.readline().rstrip("\n"))
        writer.write(b"after\n")
        assert read_all(reading, writer) == ["after"]
    notice = lines.pop()
    assert notice == f"dropped {dropped}"
    numbers = [int(line) for line in lines]
    assert len(numbers) == 5000 - dropped
    assert numbers == sorted(numbers)


def test_lines_of_several_threads_are_whole_and_in_order() -> None:
    with pipe_and_writer() as (reading, writer):

        def write(name: str) -> None:
            for number in range(200):
                writer.write(f"{name} {number} {'x' * 3000}\n".encode())

        threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.extend(read_all(reading, writer)))
        for thread in threads:
            thread.join(SECONDS)
        reader.start()
        reader.join(SECONDS)
    assert {line.partition("x")[2] for line in lines} == {"x" * 2999}
    for name in "abc":
        assert [line.split()[1] for line in lines if line.startswith(name)] == [str(number) for number in range(200)]


def test_a_log_whose_reader_has_closed_the_pipe_raises_no_error() -> None:
    with pipe_and_writer(max_lines=5) as (reading, writer):
        os.close(reading)
        for _ in range(100):
            writer.write(b"line\n")
        writer.flush(SECONDS)  # returns, because writing fails
        assert writer.dropped >= 90


def test_a_signal_handler_may_log_while_its_thread_writes() -> None:
    with pipe_and_writer() as (reading, writer):
        with writer._lock:
            writer.write(b"from the handler\n")
        assert read_all(reading, writer) == ["from the handler"]


def test_a_forked_child_writes_its_own_lines_once() -> None:
    with pipe_and_writer() as (reading, writer):
        writer.write(b"parent\n")
        writer.flush(SECONDS)
        child = os.fork()
        if child == 0:
            writer.write(b"child\n")
            writer.flush(SECONDS)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        writer.write(b"parent again\n")
        assert read_all(reading, writer) == ["parent", "child", "parent again"]


def write_from_three_processes() -> bytes:
    """What a pipe gets from processes that write lines of 20,000 bytes at the same time."""
    reading, writing = os.pipe()
    children = []
    for letter in (b"a", b"b", b"c"):
        pid = os.fork()
        if pid == 0:
            writer = ThreadedWriter(writing, lambda _: b"")
            for _ in range(20):
                writer.write(letter * 19_999 + b"\n")
            writer.close()
            os._exit(0)
        children.append(pid)
    os.close(writing)
    with open(reading, "rb") as pipe:
        written = pipe.read()
    for pid in children:
        os.waitpid(pid, 0)
    return written


def count_mixed_lines(written: bytes) -> int:
    return sum(line not in (b"a" * 19_999, b"b" * 19_999, b"c" * 19_999) for line in written.splitlines())


def test_lines_of_several_processes_are_whole_if_they_share_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_log_writer, "_shares_lines", False)
    share_lines()
    written = write_from_three_processes()
    assert len(written) == 60 * 20_000
    assert count_mixed_lines(written) == 0


def test_control_lines_of_processes_that_do_not_take_turns_are_mixed() -> None:
    for _ in range(20):
        if count_mixed_lines(write_from_three_processes()):
            return
    pytest.fail("no line was mixed")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_full_disk_loses_only_the_lines_that_do_not_fit_into_the_queue(tmp_path: Path) -> None:
    mount: list[str | Path] = ["/bin/mount", "-t", "tmpfs", "-o", "size=64k", "howdah", tmp_path]
    mounted = subprocess.run(mount, check=False, capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("file systems can't be mounted here")
    try:
        filler = tmp_path / "filler"
        with contextlib.suppress(OSError):
            filler.write_bytes(bytes(100_000))
        log = tmp_path / "log"
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        writer = ThreadedWriter(descriptor, lambda lines: f"dropped {lines}\n".encode(), max_lines=10)
        os.close(descriptor)
        for number in range(1000):
            writer.write(f"{number}\n".encode())
        wait_until(lambda: writer._is_failing)
        filler.unlink()
        wait_until(lambda: not writer._waiting_bytes)
        writer.close()
        *lines, notice = log.read_text().splitlines()
        assert notice == f"dropped {1000 - len(lines)}"
        assert lines == [str(number) for number in range(len(lines))]
    finally:
        subprocess.run(["/bin/umount", "--lazy", tmp_path], check=True)


def test_a_stream_without_a_descriptor_is_written_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    open_standard_error(lambda _: b"").write(b"at once\n")
    assert capsys.readouterr().err == "at once\n"


def run_logging(code: str) -> list[dict[str, str]]:
    """The entries of a process that runs this code."""
    before = "import atexit, logging, sys, threading, warnings\nfrom howdah.logs import configure_logging\n"
    finished = subprocess.run(
        [sys.executable, "-c", before + code], capture_output=True, check=False, text=True, timeout=60
    )
    return [json.loads(line) for line in finished.stderr.splitlines()]


def test_the_last_entries_are_written_after_an_error_and_in_functions_of_atexit() -> None:
    entries = run_logging(
        "atexit.register(lambda: logging.warning('later'))\n"  # runs after the log's own function
        "configure_logging('json')\nlogging.warning('before')\nraise LookupError('the end')"
    )
    assert [entry["event"] for entry in entries] == ["before", "an error ended the thread main", "later"]
    assert "LookupError: the end" in entries[1]["exception"]


def test_warnings_and_uncaught_errors_are_logged() -> None:
    warning, thread, ignored, wrong = run_logging(
        "configure_logging('json')\n"
        "warnings.warn('old', UserWarning)\n"
        "thread = threading.Thread(target=lambda: 1 / 0, name='worker')\nthread.start()\nthread.join()\n"
        "class Failing:\n    def __del__(self):\n        raise LookupError('in a finalizer')\n"
        "Failing()\n"
        "logging.info('%d', 'text')\n"
    )
    assert "UserWarning: old" in warning["event"]
    assert thread["event"] == "an error ended the thread worker"
    assert "ZeroDivisionError" in thread["exception"]
    assert "LookupError: in a finalizer" in ignored["exception"]
    assert (wrong["level"], wrong["event"]) == ("error", "a log entry can't be formatted: '%d'")


class StackOfContexts:
    """A runtime context of OpenTelemetry that isn't in a context variable."""

    def __init__(self) -> None:
        self._stack = [Context()]

    def attach(self, context: Context) -> None:
        self._stack.append(context)

    def get_current(self) -> Context:
        return self._stack[-1]

    def detach(self, token: object) -> None:
        self._stack.pop()


@pytest.mark.parametrize("is_in_variable", [True, False])
def test_entries_have_the_current_span_wherever_it_is_kept(
    monkeypatch: pytest.MonkeyPatch, is_in_variable: bool
) -> None:
    if not is_in_variable:
        monkeypatch.setattr("opentelemetry.context._RUNTIME_CONTEXT", StackOfContexts())
    add_trace_id = AddTraceId()
    span = trace.NonRecordingSpan(trace.SpanContext(1, 2, is_remote=False))
    for _ in range(2):
        with trace.use_span(span):
            assert add_trace_id(None, "info", {}) == {"trace_id": "0" * 31 + "1", "span_id": "0" * 15 + "2"}
        assert add_trace_id(None, "info", {}) == {}
        assert add_trace_id.has_context_variable is is_in_variable
