"""Build the documentation site in build/site: `make docs`.

The pages link to each other and to files of the repository, so that they can be read there, too. The site has only
pages. So the pages are copied to build/docs, and links to other files are replaced by their texts. The pages of the
reference are made here: one for each public module, with the docstrings of its public names.
"""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final
from urllib.parse import unquote

PROJECT: Final = Path(__file__).parents[1]
DOCS: Final = PROJECT / "docs"
COPIES: Final = PROJECT / "build/docs"
SITE: Final = PROJECT / "build/site"

# Pages outside of docs/, and their names on the site.
OTHER_PAGES: Final = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
MODULES: Final = [
    "howdah",
    "howdah.alembic",
    "howdah.bulk",
    "howdah.embedded",
    "howdah.errors",
    "howdah.fastapi",
    "howdah.logs",
    "howdah.metrics",
    "howdah.tenancy",
    "howdah.testing",
    "howdah.tracing",
]

_FENCE: Final = re.compile(r"(^ *```.*?^ *```$)", re.DOTALL | re.MULTILINE)
_LINK: Final = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def main() -> int:
    """Build the site. Returns the exit status: 1 if a link has no target, or the generator reports a warning."""
    copy_pages()
    write_reference()
    unlisted = find_unlisted_pages()
    if unlisted:
        print(f"these pages aren't in `nav` of zensical.toml: {', '.join(unlisted)}", file=sys.stderr)
        return 1
    built = subprocess.run([sys.executable, "-m", "zensical", "build", "--clean", "--strict"], cwd=PROJECT, check=False)
    if built.returncode:
        return built.returncode
    broken = [*find_broken_links(SITE), *find_external_resources(SITE)]
    for problem in broken:
        print(problem, file=sys.stderr)
    print(
        f"{SITE.relative_to(PROJECT)}/index.html: {len(list(SITE.rglob('*.html')))} pages, {len(broken)} broken links"
    )
    return bool(broken)


def copy_pages() -> None:
    """Copy all pages and images to build/docs, with links that are valid there."""
    shutil.rmtree(COPIES, ignore_errors=True)
    pages = {path: path.relative_to(DOCS) for path in DOCS.rglob("*.md")}
    pages |= {PROJECT / name: Path(copy) for name, copy in OTHER_PAGES.items()}
    images = {path: Path("images") / path.name for path in (PROJECT / "benchmarks/results").glob("*.svg")}
    for source, target in pages.items():
        copy = COPIES / target
        copy.parent.mkdir(parents=True, exist_ok=True)
        parts = _FENCE.split(source.read_text(encoding="utf-8"))
        # the odd parts are code
        parts[::2] = [_replace_links(part, source, target, pages | images) for part in parts[::2]]
        copy.write_text("".join(parts), encoding="utf-8")
    for source, target in images.items():
        (COPIES / target).parent.mkdir(exist_ok=True)
        shutil.copyfile(source, COPIES / target)


def _replace_links(text: str, source: Path, target: Path, copies: dict[Path, Path]) -> str:
    def replace(match: re.Match[str]) -> str:
        image, label, link = match.groups()
        file, hash_, heading = link.partition("#")
        if not file or re.match(r"\w+:", file):
            return match[0]
        copy = copies.get((source.parent / unquote(file)).resolve())
        if copy is None:  # a file that isn't on the site
            return label
        up = "../" * (len(target.parts) - 1)
        return f"{image}[{label}]({up}{copy.as_posix()}{hash_}{heading})"

    return _LINK.sub(replace, text)


def write_reference() -> None:
    """Write a page for each public module: its docstring, and the docstring of each name in its `__all__`."""
    folder = COPIES / "reference"
    folder.mkdir()
    modules = {name: importlib.import_module(name) for name in MODULES}
    for name, module in modules.items():
        names = [each for each in _public_names(name) if f"{name}.{each}" not in modules]
        lines = [f"# {name}", "", (module.__doc__ or "").strip(), ""]
        for each in names:
            lines += [f"::: {name}.{each}", ""]
        (folder / f"{name}.md").write_text("\n".join(lines), encoding="utf-8")


def _public_names(module_name: str) -> list[str]:
    module = importlib.import_module(module_name)
    if hasattr(module, "__all__"):
        return sorted(module.__all__)
    return sorted(
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module_name
    )


def find_unlisted_pages() -> list[str]:
    """The pages that the navigation doesn't have. Decision records are listed on a page of their own."""
    listed = set(re.findall(r'"([\w./-]+\.md)"', (PROJECT / "zensical.toml").read_text(encoding="utf-8")))
    pages = {path.relative_to(COPIES).as_posix() for path in COPIES.rglob("*.md")}
    return sorted(page for page in pages - listed if not re.match(r"decisions/\d", page))


def find_broken_links(site: Path) -> list[str]:
    """The links of the built pages that have no target: a missing file, or a missing id."""
    texts = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    ids = {path: set(re.findall(r'\bid="?([^"\s>]+)', text)) for path, text in texts.items()}
    broken = []
    for path, text in texts.items():
        for link in sorted(set(re.findall(r'<a\b[^>]*?\bhref="?([^"\s>]+)', text))):
            file, _, heading = link.partition("#")
            if re.match(r"\w+:|//", link) or (path.name == "404.html"):
                continue
            target = (path.parent / unquote(file)).resolve() if file else path
            if target.is_dir():
                target /= "index.html"
            if not target.exists() or (heading and heading != "__skip" and unquote(heading) not in ids.get(target, ())):
                broken.append(f"{path.relative_to(site)}: the link {link} has no target")
    return broken


def find_external_resources(site: Path) -> list[str]:
    """The scripts, styles, images and fonts that a page would load from another server."""
    found = []
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        for tag in re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", text):
            url = re.search(r'\b(?:src|href)="?(https?:[^"\s>]+|//[^"\s>]+)', tag)
            if url and 'rel="canonical"' not in tag and "rel=canonical" not in tag:
                found.append(f"{path.relative_to(site)}: {url[1]} is loaded from another server")
    return found


if __name__ == "__main__":
    raise SystemExit(main())
