"""A mail server that is slow, broken or missing blocks no request, and nothing secret is logged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from shop.identity import mail
from shop.identity.errors import MailBusy
from shop.identity.mail import ConsoleMailer, Mail, MailQueue, SmtpMailer
from shop.identity.mail_texts import MailTexts

_MAIL = Mail("ada@example.com", "Reset your password", "token: c2VjcmV0")


@asynccontextmanager
async def smtp_server(received: list[str]) -> AsyncIterator[int]:
    """The port of a server that accepts every mail."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 test\r\n")
        is_data = False
        while line := (await reader.readline()).decode():
            received.append(line.rstrip("\r\n"))
            if is_data and line != ".\r\n":
                continue
            if line.upper().startswith("DATA"):
                is_data = True
                writer.write(b"354 go on\r\n")
            elif line.upper().startswith("QUIT"):
                writer.write(b"221 bye\r\n")
            else:
                is_data = False
                writer.write(b"250 ok\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_a_mail_is_sent_by_smtp() -> None:
    received: list[str] = []
    async with smtp_server(received) as port:
        mailer = SmtpMailer(f"smtp://127.0.0.1:{port}", sender="Shop <shop@example.com>")
        await mailer.send(_MAIL)
    assert {"Subject: Reset your password", "To: ada@example.com", "token: c2VjcmV0"} <= set(received)


async def test_a_server_elsewhere_must_have_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[str] = []
    monkeypatch.setattr(mail, "_LOOPBACK_HOSTS", frozenset[str]())
    async with smtp_server(received) as port:
        with pytest.raises(Exception, match="STARTTLS"):
            await SmtpMailer(f"smtp://127.0.0.1:{port}", sender="shop@example.com").send(_MAIL)
    assert "token: c2VjcmV0" not in received


@pytest.mark.parametrize("header", ["to", "subject"])
async def test_a_line_break_adds_no_header(header: str) -> None:
    attacked = {"to": "a@example.com", "subject": "Hello"} | {header: "a@example.com\nBcc: mallory@example.com"}
    with pytest.raises(ValueError, match="line"):
        await SmtpMailer("smtp://127.0.0.1:1", sender="shop@example.com").send(Mail(**attacked, text="x"))


@pytest.mark.parametrize("url", ["mail.example.com", "https://mail.example.com", "smtp://"])
def test_another_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="must be smtp"):
        SmtpMailer(url, sender="shop@example.com")


class _Failing:
    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.sent: list[Mail] = []

    async def send(self, mail: Mail) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionRefusedError(f"{mail.to} {mail.text}")
        self.sent.append(mail)


@pytest.mark.parametrize(("failures", "is_sent"), [(2, True), (3, False)])
async def test_a_mail_that_fails_is_tried_three_times_and_not_logged(
    failures: int, is_sent: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mail, "_DELAYS_BEFORE_RETRIES", (0.0, 0.0))
    mailer = _Failing(failures)
    async with MailQueue(mailer).running() as mails:
        with mails.reserve() as waiting:
            waiting.append(_MAIL)
        await mails.join()
    assert (mailer.sent, mails.failed) == (([_MAIL], 0) if is_sent else ([], 1))
    assert "c2VjcmV0" not in caplog.text
    assert "ada@" not in caplog.text


async def test_a_full_queue_is_refused_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mail, "_MAX_WAITING", 1)
    mails = MailQueue(ConsoleMailer())
    with mails.reserve(), pytest.raises(MailBusy), mails.reserve():
        raise AssertionError("the queue is full")


async def test_mails_of_a_request_that_fails_are_not_sent() -> None:
    mailer = _Failing(0)
    async with MailQueue(mailer).running() as mails:
        with suppress(ZeroDivisionError), mails.reserve() as waiting:
            waiting.append(_MAIL)
            raise ZeroDivisionError
        await mails.join()
    assert mailer.sent == []


async def test_the_console_mailer_writes_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    await ConsoleMailer().send(_MAIL)
    shown = capsys.readouterr()
    assert "token: c2VjcmV0" in shown.out
    assert shown.err == ""


def test_a_link_has_the_configured_address_and_the_token_in_its_fragment() -> None:
    text = MailTexts("https://shop.example.com/").reset("ada@example.com", "c2VjcmV0").text
    assert "https://shop.example.com/reset#token=c2VjcmV0" in text
    assert "c2VjcmV0" not in repr(_MAIL)
