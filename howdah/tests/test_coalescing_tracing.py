"""A shared trip is a trace of its own, linked to those who are on it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Sequence

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from howdah import Coalescer

exported = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exported))
trace.set_tracer_provider(provider)


async def test_a_batch_is_linked_to_the_spans_of_its_items_and_is_a_child_of_none() -> None:
    tracer = trace.get_tracer("test")
    exported.clear()  # of other tests' trips

    async def apply(items: Sequence[int]) -> Sequence[int]:
        with tracer.start_as_current_span("apply"):
            return items

    async with Coalescer(apply) as coalescer:

        async def ride(n: int) -> int:
            with tracer.start_as_current_span(f"rider {n}") as span:
                await coalescer.submit(n)
                return span.get_span_context().span_id

        riders = await asyncio.gather(*map(ride, range(3)))
        await coalescer.submit(4)  # outside of any span
    spans = {span.name: span for span in exported.get_finished_spans()}
    trips = [span for span in exported.get_finished_spans() if span.name == "howdah batch"]
    assert [link.context.span_id for link in trips[0].links] == riders
    assert trips[0].parent is None
    assert trips[1].links == ()
    assert spans["apply"].parent is not None
    assert spans["apply"].parent.span_id == trips[1].context.span_id


def test_a_coalescer_works_without_opentelemetry() -> None:
    code = """
import asyncio, sys
sys.modules["opentelemetry"] = None
from howdah import Coalescer
async def apply(items): return items
assert asyncio.run(Coalescer(apply).submit(1)) == 1
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
