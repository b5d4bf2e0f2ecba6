"""A batch has a separate trace, with links to the spans of its items."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Sequence

from opentelemetry import trace

from howdah import Coalescer
from howdah_tests.support.spans import exported


async def test_a_batch_is_linked_to_the_spans_of_its_items_and_is_a_child_of_none() -> None:
    tracer = trace.get_tracer("test")
    exported.clear()  # the spans of other tests

    async def apply(items: Sequence[int]) -> Sequence[int]:
        with tracer.start_as_current_span("apply"):
            return items

    async with Coalescer(apply) as coalescer:

        async def submit(n: int) -> int:
            with tracer.start_as_current_span(f"item {n}") as span:
                await coalescer.submit(n)
                return span.get_span_context().span_id

        submitters = await asyncio.gather(*map(submit, range(3)))
        await coalescer.submit(4)  # outside of any span
    spans = {span.name: span for span in exported.get_finished_spans()}
    batches = [span for span in exported.get_finished_spans() if span.name == "howdah batch"]
    assert [link.context.span_id for link in batches[0].links] == submitters
    assert batches[0].parent is None
    assert batches[1].links == ()
    assert [dict(batch.attributes or {}) for batch in batches] == [{"howdah.batch.size": 3}, {"howdah.batch.size": 1}]
    assert spans["apply"].parent is not None
    assert spans["apply"].parent.span_id == batches[1].context.span_id


def test_a_coalescer_works_without_opentelemetry() -> None:
    code = """
import asyncio, sys
sys.modules["opentelemetry"] = None
from howdah import Coalescer
async def apply(items): return items
assert asyncio.run(Coalescer(apply).submit(1)) == 1
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
