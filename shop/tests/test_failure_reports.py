"""A failed test doesn't end the run."""

from __future__ import annotations

import ast
import gc
from collections.abc import Iterator

import pytest


@pytest.fixture
def _parse_in_each_collection() -> Iterator[None]:
    """Garbage is collected often, and each collection calls `ast.parse` at another depth of the stack."""

    def parse(depth: int) -> None:
        if depth:
            parse(depth - 1)
        else:
            ast.parse("a + b")

    def called_by_collection(phase: str, _info: dict[str, int]) -> None:
        parse(40)

    threshold = gc.get_threshold()
    gc.callbacks.append(called_by_collection)
    gc.set_threshold(50)
    yield
    gc.set_threshold(*threshold)
    gc.callbacks.remove(called_by_collection)


@pytest.mark.usefixtures("_parse_in_each_collection")
def test_a_failure_has_its_message_while_collections_parse(request: pytest.FixtureRequest) -> None:
    def fail() -> None:
        names = [each for each in range(100) if each % 2]
        assert len(names) == 51, "the message"

    call = pytest.CallInfo.from_call(fail, when="call")
    report = request.config.hook.pytest_runtest_makereport(item=request.node, call=call)
    assert report.failed
    assert "the message" in report.longreprtext
