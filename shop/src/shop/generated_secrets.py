"""Secrets of a service with the embedded server: they are made at the first start, and kept next to its data."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from pydantic import SecretStr

from howdah.embedded import EmbeddedPostgres
from shop.keyrings import new_key
from shop.settings import KEYRINGS, Settings


def with_generated_secrets(settings: Settings) -> Settings:
    """The settings with all secrets that `create_app` needs.

    Secrets that aren't set are read from `.<name of the data directory>.secrets` next to the data directory. They are
    made if they don't exist, so that tokens stay valid when the service starts again. Only the user of the process may
    read them. Settings with a `database_url` aren't changed: there, an operator sets the secrets.
    """
    missing = [name for name in KEYRINGS if getattr(settings, name) is None]
    if settings.database_url is not None or not missing:
        return settings
    folder = secrets_folder(EmbeddedPostgres(settings.data_dir).data_dir)
    folder.mkdir(mode=0o700, exist_ok=True)
    return settings.model_copy(update={name: SecretStr(_read_or_create(folder / f"shop_{name}")) for name in missing})


def secrets_folder(data_dir: Path) -> Path:
    """The directory with the secrets of the embedded server with this data directory."""
    return data_dir.with_name(f".{data_dir.name}.secrets")


def _read_or_create(path: Path) -> str:
    """The key in the file. If two processes create it at the same time, both get the same one."""
    if not path.exists():
        descriptor, draft = tempfile.mkstemp(dir=path.parent)  # with the mode 0600
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(new_key())
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileExistsError):
                os.link(draft, path)  # unlike a rename, it doesn't replace the file of another process
        finally:
            Path(draft).unlink()
    return path.read_text(encoding="ascii")
