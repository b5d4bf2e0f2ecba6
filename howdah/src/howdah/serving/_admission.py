"""Reject requests before the application is called, and cancel those whose client has gone."""

from __future__ import annotations

from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# The key in the lifespan's state for a function that returns the rejection of a request, or None. The application sets
# it: `howdah.fastapi.configure_app`.
_ADMIT_KEY: Final = "howdah_admit"

# The keys in the ASGI scope for the application's object that cancels the request, and for the promise to call it.
_REQUEST_KEY: Final = "howdah.request_in_progress"
_REPORTS_DISCONNECTS_KEY: Final = "howdah.reports_disconnects"

_STATUS_LINE: Final = b"HTTP/1.1 503 Service Unavailable\r\n"


class AdmittingHttpProtocol(HttpToolsProtocol):
    """A protocol that asks the application whether it has time for a request.

    A rejection costs no task and no middleware, and so about a quarter of the time. That matters because at four times
    the sustainable rate there are three rejections for each response.
    """

    _running: Any = None  # the last request that was started

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        """Start the request, or reject it."""
        admit = self.app_state.get(_ADMIT_KEY)
        rejection = None if admit is None else admit(cycle.scope)
        if rejection is None:
            self._running = cycle
            cycle.scope[_REPORTS_DISCONNECTS_KEY] = True
            super()._start_asgi_task(cycle, app)
            return
        headers = [b"%b: %b\r\n" % header for header in self.server_state.default_headers]
        if cycle.waiting_for_100_continue:
            cycle.keep_alive = False  # the client may send its body or not
        if not cycle.keep_alive:
            headers.append(b"connection: close\r\n")
        self.transport.write(b"".join((_STATUS_LINE, *headers, rejection)))
        cycle.response_started = cycle.response_complete = True
        # The caller still begins this request. The rest of the body is ignored.
        self.loop.call_soon(self._end_rejected, cycle)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the application that the client of the request in progress has gone."""
        super().connection_lost(exc)
        running = self._running
        if running is not None and not running.response_complete:
            request = running.scope.get(_REQUEST_KEY)
            if request is not None:
                request.client_has_gone()

    def _end_rejected(self, cycle: Any) -> None:
        if not cycle.keep_alive and not self.transport.is_closing():
            cycle.transport.close()
        running = self._running
        if (running is None or running.response_complete) and (self.cycle is cycle or self.pipeline):
            self.on_response_complete()
        else:  # another request, which came after this one, is in progress or is rejected next
            self.server_state.total_requests += 1
