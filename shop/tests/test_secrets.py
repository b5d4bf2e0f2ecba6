"""Secrets: where they come from, which ones are refused, and that nothing shows them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch
from uuid import uuid4

import httpx
import pytest
from pydantic import SecretStr, ValidationError
from sqlalchemy import make_url, text
from typer.testing import CliRunner

from howdah import Database
from shop import generated_secrets
from shop.app import create_app
from shop.cli import app
from shop.generated_secrets import secrets_folder, with_generated_secrets
from shop.identity.models import Credential
from shop.identity.principals import Principal, Role
from shop.identity.tokens import TokenSigner
from shop.keyrings import MissingSecret, new_key, parse_keyring
from shop.postgres import as_service_login
from shop.settings import KEYRINGS, Settings
from shop.users.models import User
from shop_tests.support.http_service import client_of
from shop_tests.support.waiting import until

DATABASE_PASSWORD = "dbpw-Zq3vX9Lm2"
OWNER_PASSWORD = "owner-Kp7wR4Tn8"
SOME_URL = f"postgresql://shop:{DATABASE_PASSWORD}@127.0.0.1:1/shop"


def serve(**variables: str) -> tuple[int, str]:
    """The exit code and the output of `shop serve` for wrong settings. It leaves the log of the tests as it is."""
    environment = {f"SHOP_{name}": value for name, value in variables.items()}
    with patch("howdah.logs.configure_logging"):
        result = CliRunner().invoke(app, ["serve", "--port", "0"], env=environment, catch_exceptions=False)
    return result.exit_code, result.output


def test_a_new_secret_is_accepted() -> None:
    result = CliRunner().invoke(app, ["new-secret"])
    assert len(parse_keyring(result.output)) == 1
    assert CliRunner().invoke(app, ["new-secret"]).output != result.output


def test_a_service_with_a_database_url_does_not_start_without_keys() -> None:
    code, output = serve(DATABASE_URL=SOME_URL)
    assert code == 1
    assert "SHOP_SIGNING_KEYS isn't set" in output
    assert "shop new-secret" in output
    assert len(output.splitlines()) == 1
    assert DATABASE_PASSWORD not in output


def test_a_service_with_a_database_url_does_not_print_mails_with_tokens() -> None:
    keys = {"DATABASE_URL": SOME_URL, "SIGNING_KEYS": new_key(), "ENCRYPTION_KEYS": new_key()}
    code, output = serve(**keys)
    assert (code, len(output.splitlines())) == (1, 1)
    assert "SHOP_SMTP_URL isn't set" in output
    assert "SHOP_CONSOLE_MAILS=on" in output
    for allowed in ({"CONSOLE_MAILS": "on"}, {"SMTP_URL": "smtps://mail.example.com"}):
        _, output = serve(**keys, **allowed)  # it doesn't reach its database
        assert "SHOP_SMTP_URL" not in output
        assert "127.0.0.1:1" in output or "refused" in output, output
    Settings().check_mails()  # the embedded server is for development


def test_a_key_for_two_purposes_is_refused() -> None:
    key, other = new_key(), new_key()
    secret = key.partition(":")[2]
    code, output = serve(DATABASE_URL=SOME_URL, SIGNING_KEYS=f"{other},{key}", ENCRYPTION_KEYS=f"another:{secret}")
    assert code == 1
    assert "SHOP_SIGNING_KEYS and SHOP_ENCRYPTION_KEYS have a key in common" in output
    assert secret not in output


def test_an_application_without_keys_is_not_created() -> None:
    with pytest.raises(MissingSecret, match="SHOP_SIGNING_KEYS isn't set"):
        create_app("postgresql://db/shop", Settings())


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ("a:tooshort-Zq3vX9Lm2", "too weak"),
        ("a:" + "Zq3vX9Lm" * 10, "too weak"),
        ("a:Example-Zq3vX9Lm2-Zq3vX9Lm2-Kp7wR4Tn8", "an example"),
        ("a:change-me-Zq3vX9Lm2-Zq3vX9Lm2-Kp7wR4Tn8", "an example"),
        ("a:test-key-that-is-long-enough-for-hs256", "an example"),
        ("Zq3vX9Lm2Kp7wR4Tn8Zq3vX9Lm2Kp7wR4Tn8Hd6", "must be `id:secret`"),
        (":Zq3vX9Lm2Kp7wR4Tn8Zq3vX9Lm2Kp7wR4Tn8Hd6", "must be `id:secret`"),
        ("a:Zq3vX9Lm2Kp7wR4Tn8Zq3vX9Lm2Kp7wR4Tn8Hd6,a:Hd6Zq3vX9Lm2Kp7wR4Tn8Zq3vX9Lm2Kp7wR4Tn8", "its own id"),
        (" , ", "no key"),
    ],
)
def test_a_weak_or_known_key_is_refused_without_showing_it(keys: str, reason: str) -> None:
    code, output = serve(DATABASE_URL=SOME_URL, SIGNING_KEYS=keys)
    assert code == 1
    assert "SHOP_SIGNING_KEYS" in output
    assert reason in output
    assert len(output.splitlines()) == 1
    with pytest.raises(ValidationError) as rejected:
        Settings(signing_keys=SecretStr(keys))
    for shown in (output, str(rejected.value), repr(rejected.value)):
        assert "Zq3vX9Lm2" not in shown
        assert "long-enough" not in shown


def test_a_wrong_database_url_is_refused_without_showing_its_password() -> None:
    url = f"postgresql://shop:{DATABASE_PASSWORD}@db:port/shop"
    code, output = serve(DATABASE_URL=url, SIGNING_KEYS=new_key())
    assert code == 1
    assert DATABASE_PASSWORD not in output
    with pytest.raises(ValidationError) as rejected:
        Settings(database_url=url)
    assert DATABASE_PASSWORD not in str(rejected.value)


def test_the_text_of_the_settings_has_no_secret() -> None:
    key = new_key()
    settings = Settings(database_url=SOME_URL, signing_keys=SecretStr(key))
    for shown in (repr(settings), str(settings), settings.model_dump_json(exclude={"database_url"})):
        assert DATABASE_PASSWORD not in shown
        assert key.partition(":")[2] not in shown


def test_settings_are_read_from_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keys = [new_key(), new_key()]
    (tmp_path / "shop_signing_keys").write_text("\n".join(keys) + "\n")
    (tmp_path / "shop_database_url").write_text(SOME_URL + "\n")
    monkeypatch.setenv("SHOP_SECRETS_DIR", str(tmp_path))
    assert Settings().database_url == SOME_URL
    assert list(Settings().signing_keyring) == [key.partition(":")[0] for key in keys]
    monkeypatch.setenv("SHOP_SIGNING_KEYS", keys[1])
    assert list(Settings().signing_keyring) == [keys[1].partition(":")[0]]  # the variable wins


def test_a_directory_of_secrets_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    code, output = serve(SECRETS_DIR=str(tmp_path / "nowhere"))
    assert code == 1
    assert "SHOP_SECRETS_DIR" in output


def test_an_embedded_server_keeps_its_own_keys(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "postgresql")
    settings.check_secrets()
    with ThreadPoolExecutor(8) as pool:  # as if several services were started at the same time
        first, *others = pool.map(lambda _: with_generated_secrets(settings).signing_keys, range(16))
    assert first is not None
    assert others == [first] * 15
    assert with_generated_secrets(settings).signing_keys == first
    folder = secrets_folder(tmp_path / "postgresql")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {(file.name, stat.S_IMODE(file.stat().st_mode)) for file in folder.iterdir()} == {
        (f"shop_{name}", 0o600) for name in KEYRINGS
    }
    assert [each.name for each in tmp_path.iterdir()] == [folder.name]

    chosen = settings.model_copy(update={name: SecretStr(new_key()) for name in KEYRINGS})
    assert with_generated_secrets(chosen) is chosen


def test_no_key_is_made_for_another_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated_secrets, "new_key", pytest.fail)
    settings = Settings(database_url=SOME_URL)
    assert with_generated_secrets(settings) is settings
    with pytest.raises(MissingSecret):
        settings.check_secrets()


async def test_nothing_that_a_service_writes_contains_a_secret(
    committed_url: str, committed_database: Database, tmp_path: Path
) -> None:
    keys = {name: new_key() for name in KEYRINGS}
    for name, key in keys.items():
        (tmp_path / f"shop_{name}").write_text(key)
    for name, url, password in (
        ("shop_database_url", as_service_login(committed_url), DATABASE_PASSWORD),
        ("shop_owner_database_url", committed_url, OWNER_PASSWORD),
    ):
        (tmp_path / name).write_text(make_url(url).set(password=password).render_as_string(hide_password=False))
    async with committed_database.begin() as session:
        session.add(user := User(email="ada@example.com", name="Ada"))
        await session.flush()
        user_id = user.id
        session.add(Credential(user_id=user_id, role=Role.ADMIN))
    signer = TokenSigner(parse_keyring(keys["signing_keys"]))
    token = signer.sign(Principal(user_id, Role.ADMIN, session_id=uuid4()))
    secrets = [DATABASE_PASSWORD, OWNER_PASSWORD, token.rpartition(".")[2]]
    secrets += [key.partition(":")[2] for key in keys.values()]
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    output = tmp_path / "output"
    with output.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from shop.cli import main; main()", "serve", "--port", str(port)),
            env=os.environ
            | {"SHOP_SECRETS_DIR": str(tmp_path), "SHOP_SHUTDOWN_PAUSE": "0", "SHOP_CONSOLE_MAILS": "on"},
            stdout=file,
            stderr=file,
        )
    signed_in, answers = {"Authorization": f"Bearer {token}"}, []
    try:
        async with client_of(f"http://127.0.0.1:{port}", signs_in=False) as client:

            async def is_ready() -> bool:
                try:
                    return (await client.get("/readyz")).status_code == 200
                except httpx.TransportError:
                    assert process.returncode is None, output.read_text()
                    return False

            await until(is_ready, seconds=90)
            body = {"name": "a", "scopes": ["users:read", "orders:read"]}
            created = await client.post("/auth/api-keys", json=body, headers=signed_in)
            api_key = created.json()["key"]
            secrets.append(api_key.split("_", 2)[2])
            for headers in (
                signed_in,
                {"Authorization": f"Bearer {token}x"},
                {"Authorization": f"Basic {token}"},
                {"X-API-Key": api_key},
                {"X-API-Key": api_key + "x"},
                signed_in | {"X-API-Key": api_key},
            ):
                answers += [await client.get(f"/users/{user_id}", headers=headers)]
            assert [each.status_code for each in answers] == [200, 401, 401, 200, 401, 400]
            async with committed_database.begin() as session:
                await session.execute(text("ALTER TABLE users RENAME TO users_gone"))
            answers += [await client.get(f"/users/{user_id}", headers=signed_in)]
            assert answers[-1].status_code >= 500
            answers += [await client.get(path) for path in ("/metrics", "/docs", "/openapi.json", "/readyz")]
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.wait()
    written = output.read_text()
    assert "/users/" in written
    assert "Traceback" in written
    for shown in (written, *(f"{each.headers}{each.text}" for each in answers)):
        assert not [secret for secret in secrets if secret in shown]
