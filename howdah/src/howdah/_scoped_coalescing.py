"""Request batching for scopes: calls share a batch only if they have the same scope, for example the same tenant."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Hashable
from dataclasses import replace
from typing import Any, Generic, TypeVar
from weakref import WeakSet

from howdah._batch_calls import Apply
from howdah._batch_figures import CoalescerStatus
from howdah.coalescing import Coalescer
from howdah.errors import CoalescerClosed

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class ScopedCoalescers(Generic[ItemT, ResultT]):
    """A coalescer for each scope that is in use. Without waiters it is dropped, so that the number doesn't grow.

    If all waiters were cancelled, a dropped coalescer may still have a running batch, for which `aclose` waits.

    They are copies of `unscoped`, the coalescer of calls without a scope. Each one has its own queue and limits, but
    they count in the figures of `unscoped`.
    """

    def __init__(self, unscoped: Coalescer[ItemT, ResultT]) -> None:
        self._unscoped = unscoped
        self._by_scope: dict[Hashable, _Used[ItemT, ResultT]] = {}
        self._dropped: WeakSet[Coalescer[ItemT, ResultT]] = WeakSet()  # the running tasks keep these alive
        self._closed = False

    def __len__(self) -> int:
        """The number of scopes in use."""
        return len(self._by_scope)

    async def submit(self, scope: Hashable, apply: Apply[ItemT, ResultT], item: ItemT) -> ResultT:
        """Submit the item to the coalescer of the scope. `apply` must do the same for equal scopes."""
        if self._closed:
            raise CoalescerClosed("the view reader is closed")
        used = self._by_scope.get(scope)
        if used is None:
            used = self._by_scope[scope] = _Used(self._unscoped.copy_for(apply))
        used.count += 1
        try:
            return await used.coalescer.submit(item)
        finally:
            used.count -= 1
            if not used.count:
                del self._by_scope[scope]
                used.coalescer.release()
                if not all(worker.done() for worker in used.coalescer._running):
                    self._dropped.add(used.coalescer)

    def keep(self, apply: Apply[ItemT, ResultT]) -> Coalescer[ItemT, ResultT]:
        """A coalescer for a scope that is always in use. Its calls share a batch with no other calls."""
        used = self._by_scope[object()] = _Used(self._unscoped.copy_for(apply))
        used.count = 1
        return used.coalescer

    def status(self) -> CoalescerStatus:
        """The status of all scopes and of the unscoped calls together."""
        each = [self._unscoped.status(), *(coalescer.status() for coalescer in self._list_scoped())]
        waiting, running = sum(status.waiting for status in each), sum(status.running for status in each)
        return replace(each[0], waiting=waiting, running=running)

    async def aclose(self) -> None:
        """Reject new items, and wait until all others have a result. All coalescers end within one `close_timeout`."""
        self._closed = True
        await asyncio.gather(*(coalescer.aclose() for coalescer in self._list_scoped()))

    def _list_scoped(self) -> list[Coalescer[ItemT, ResultT]]:
        """The coalescers of all scopes, also the dropped ones."""
        return [*(used.coalescer for used in self._by_scope.values()), *self._dropped]


class _Used(Generic[ItemT, ResultT]):
    """A coalescer, and the number of calls that use it."""

    __slots__ = ("coalescer", "count")

    def __init__(self, coalescer: Coalescer[ItemT, ResultT]) -> None:
        self.coalescer = coalescer
        self.count = 0


class Scope(Generic[ItemT, ResultT]):
    """The coalescer of one scope: it has the methods that a view reader uses."""

    def __init__(self, all_scopes: ScopedCoalescers[ItemT, ResultT], scope: Hashable, apply: Apply[Any, Any]) -> None:
        self._all_scopes, self._scope, self._apply = all_scopes, scope, apply

    def submit(self, item: ItemT) -> Awaitable[ResultT]:
        return self._all_scopes.submit(self._scope, self._apply, item)
