"""A real browser for tests: Chromium without a window, driven through the Chrome DevTools Protocol.

The commands go through a pipe, so no port and no further package is needed.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest

CHROMIUM: Final = shutil.which("chromium") or shutil.which("google-chrome")

needs_chromium: Final = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")

_TIMEOUT_SECONDS: Final = 30


class Page:
    """One page of the browser. Its commands raise `TimeoutError` after 30 s."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._numbers = count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._session: str | None = None
        self.errors: list[str] = []
        """The errors in the console. Violations of the content security policy are among them."""

    async def read_messages(self) -> None:
        """Distribute the answers, until the browser ends."""
        while True:
            message = json.loads((await self._reader.readuntil(b"\0"))[:-1])
            future = self._answers.pop(message.get("id"), None)
            if future is not None and not future.done():
                future.set_result(message)
            elif message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
                self.errors.append(message["params"]["entry"]["text"])
            elif message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(str(message["params"]["exceptionDetails"]))

    async def call(self, method: str, **parameters: Any) -> Any:
        """Call a method of the protocol."""
        number = next(self._numbers)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._answers[number] = future
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._writer.write(json.dumps(message).encode() + b"\0")
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            answer = await future
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    async def open(self) -> None:
        """Create the page."""
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")

    async def go(self, url: str) -> None:
        """Go to the URL as a person does who types it, and wait until the page is loaded."""
        await self.call("Page.navigate", url=url)
        await self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def run(self, expression: str) -> Any:
        """The value of a JavaScript expression, or of its promise."""
        result = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    async def wait(self, expression: str) -> Any:
        """Wait until the expression is true, and return its value."""
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            while True:
                try:
                    if value := await self.run(f"(v => v instanceof Node || v)({expression})"):
                        return value
                except RuntimeError:  # the page is changing
                    pass
                await asyncio.sleep(0.02)

    async def fill(self, selector: str, text: str) -> None:
        """Type the text into a field."""
        await self.wait(f"document.querySelector({json.dumps(selector)}) !== null")
        await self.run(f"document.querySelector({json.dumps(selector)}).focus()")
        await self.call("Input.insertText", text=text)

    async def click(self, selector: str) -> None:
        """Click on the first element of the selector with the mouse."""
        x, y = await self._find_center(f"document.querySelector({json.dumps(selector)})")
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def _find_center(self, element: str) -> Sequence[float]:
        """Scroll the element into view, and return the position of its center, in pixels.

        If another page replaces this one meanwhile, the element of that page is used.
        """
        while True:
            await self.wait(f"{element} !== null")
            center: Sequence[float] | None = await self.run(
                f"""(element => {{
                    if (element === null) return null;
                    element.scrollIntoView({{block: "center"}});
                    const {{x, y, width, height}} = element.getBoundingClientRect();
                    return [x + width / 2, y + height / 2];
                }})({element})"""
            )
            if center is not None:
                return center

    async def press_enter(self) -> None:
        for kind in ("rawKeyDown", "char", "keyUp"):
            await self.call("Input.dispatchKeyEvent", type=kind, key="Enter", windowsVirtualKeyCode=13, text="\r")

    async def list_cookies(self) -> dict[str, dict[str, Any]]:
        """All cookies of the browser, by their names."""
        return {each["name"]: each for each in (await self.call("Network.getAllCookies"))["cookies"]}


@asynccontextmanager
async def open_browser(folder: Path) -> AsyncIterator[Page]:
    """Chromium with a new profile in the folder. It reaches no host but this machine."""
    assert CHROMIUM is not None
    commands_out, commands_in = os.pipe()
    answers_out, answers_in = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", f'exec "$@" 3<&{commands_out} 4>&{answers_in}', "bash"),
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"),
        *(f"--user-data-dir={folder / 'profile'}", "--no-first-run", "--disable-extensions"),
        "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1 , EXCLUDE localhost",
        pass_fds=(commands_out, answers_in),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    os.close(commands_out)
    os.close(answers_in)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=64 * 1024 * 1024)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(answers_out, "rb"))
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, os.fdopen(commands_in, "wb"))
    page = Page(reader, asyncio.StreamWriter(transport, protocol, None, loop))
    reading = asyncio.create_task(page.read_messages())
    try:
        await page.open()
        yield page
    finally:
        reading.cancel()
        process.kill()
        await process.wait()
        transport.close()
