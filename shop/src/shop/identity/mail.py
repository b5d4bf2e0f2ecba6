"""Send mails, through a bounded queue: a request never waits for a mail server."""

from __future__ import annotations

import asyncio
import smtplib
import ssl
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from typing import Final, Protocol
from urllib.parse import unquote, urlsplit

import structlog

from shop.identity.errors import MailBusy

_SMTP_TIMEOUT: Final = 10.0
_MAX_WAITING: Final = 500
_WORKERS: Final = 2
_DELAYS_BEFORE_RETRIES: Final = (1.0, 5.0)
_MAX_SHUTDOWN_SECONDS: Final = 5.0
_LOOPBACK_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "::1"})

_log = structlog.get_logger("shop.mail")


@dataclass(frozen=True, slots=True)
class Mail:
    """A mail in plain text. It may contain a token, so `repr` doesn't show its text."""

    to: str
    subject: str
    text: str

    def __repr__(self) -> str:
        return f"Mail(subject={self.subject!r})"


class Mailer(Protocol):
    """Sends mails. Every exception counts as a failure, after which the mail is sent again."""

    async def send(self, mail: Mail) -> None: ...


class ConsoleMailer:
    """Writes each mail to standard output, for development. Standard error has the log."""

    async def send(self, mail: Mail) -> None:
        sys.stdout.write(f"\nmail to {mail.to}: {mail.subject}\n{mail.text}\n\n")
        sys.stdout.flush()


class SmtpMailer:
    """Sends mails through a server: `smtp://user:password@host:587` (STARTTLS), or `smtps://` (TLS from the start).

    Without TLS a mail is only sent to this machine. The certificate of the server is verified. Special characters in
    the user and the password are percent-encoded.
    """

    def __init__(self, url: str, *, sender: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("smtp", "smtps") or not parts.hostname:
            raise ValueError("the URL of the mail server must be smtp://host:port or smtps://host:port")
        self._is_tls = parts.scheme == "smtps"
        self._host = parts.hostname
        self._port = parts.port or (465 if self._is_tls else 587)
        self._user = unquote(parts.username or "")
        self._password = unquote(parts.password or "")
        self._sender = sender

    def __repr__(self) -> str:
        return f"SmtpMailer({self._host!r}, {self._port})"

    async def send(self, mail: Mail) -> None:
        message = EmailMessage()
        message["From"] = self._sender
        message["To"] = mail.to
        message["Subject"] = mail.subject
        message["Date"] = formatdate(localtime=False)
        message["Message-ID"] = make_msgid(domain=self._sender.rpartition("@")[2].rstrip(">"))
        message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office replies
        message.set_content(mail.text)
        await asyncio.to_thread(self._send, message)

    def _send(self, message: EmailMessage) -> None:
        context = ssl.create_default_context()
        connection = (
            smtplib.SMTP_SSL(self._host, self._port, timeout=_SMTP_TIMEOUT, context=context)
            if self._is_tls
            else smtplib.SMTP(self._host, self._port, timeout=_SMTP_TIMEOUT)
        )
        with connection as smtp:
            if not self._is_tls and (smtp.has_extn("starttls") or self._host not in _LOOPBACK_HOSTS):
                smtp.starttls(context=context)  # raises an error if the server doesn't support it
            if self._user:
                smtp.login(self._user, self._password)
            smtp.send_message(message)


class MailQueue:
    """Sends mails in the background. A mail that fails three times is logged without its text and its recipient.

    Mails that still wait when the process ends are lost, and users request new ones.
    """

    def __init__(self, mailer: Mailer) -> None:
        self._mailer = mailer
        self._reserved = 0
        self._queue: asyncio.Queue[Mail] = asyncio.Queue()
        self.failed = 0

    @contextmanager
    def reserve(self) -> Iterator[list[Mail]]:
        """A list for mails, which are queued at the end of the block, unless it raises.

        Raises `MailBusy` before the block if the queue is full, even if no mail would be sent. So the response doesn't
        tell whether a user has the address.
        """
        if self._reserved + self._queue.qsize() >= _MAX_WAITING:
            raise MailBusy
        self._reserved += 1
        try:
            mails: list[Mail] = []
            yield mails
            for mail in mails:
                self._queue.put_nowait(mail)
        finally:
            self._reserved -= 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[MailQueue]:
        """Send the mails inside the block. At its end, those that wait are sent within 5 s."""
        workers = [asyncio.create_task(self._work(), name="mails") for _ in range(_WORKERS)]
        try:
            yield self
        finally:
            try:
                async with asyncio.timeout(_MAX_SHUTDOWN_SECONDS):
                    await self._queue.join()
            except TimeoutError:
                _log.error("mails were lost at shutdown", count=self._queue.qsize())
            for worker in workers:
                worker.cancel()
            await asyncio.wait(workers, timeout=_MAX_SHUTDOWN_SECONDS)

    async def join(self) -> None:
        """Wait until every queued mail was sent or has failed."""
        await self._queue.join()

    async def _work(self) -> None:
        while True:
            mail = await self._queue.get()
            try:
                await self._send(mail)
            finally:
                self._queue.task_done()

    async def _send(self, mail: Mail) -> None:
        for delay in (*_DELAYS_BEFORE_RETRIES, None):
            try:
                await self._mailer.send(mail)
            except Exception as error:  # an error of a mailer must not end the worker
                # the text of an SMTP error has the recipient's address
                _log.warning("a mail was not sent", subject=mail.subject, error=type(error).__name__, retry_in=delay)
                if delay is not None:
                    await asyncio.sleep(delay)
            else:
                return
        self.failed += 1
        _log.error("a mail was given up", subject=mail.subject)
