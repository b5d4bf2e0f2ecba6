"""`make audit`: known vulnerabilities of the locked packages, and secrets in the files of the repository.

Both parts run, and the exit code is 1 if one of them finds something or can't be done. The first part sends the names
and versions of the packages to PyPI, which knows the advisories. The second part needs no network.

After a finding of the second part, remove the secret and replace it where it is used. If it is no secret, add it to
`.secrets.baseline` with `make audit ARGS=--accept`, and look at the difference before you commit it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

_ROOT: Final = Path(__file__).parent.parent
_BASELINE: Final = _ROOT / ".secrets.baseline"
# A lock file has thousands of digests, which look like secrets.
_EXCLUDED: Final = r"(^|/)(uv\.lock|\.secrets\.baseline)$"
_TIMEOUT_SECONDS: Final = 600
_UV: Final = os.environ.get("UV", "uv")  # `uv run` sets it


def main() -> int:
    """Run both parts. Returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--accept", action="store_true", help="write all findings that look like secrets to the baseline"
    )
    if parser.parse_args().accept:
        _accept_secrets()
        return 0
    problems = [*_find_vulnerabilities(), *_find_secrets()]
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print("no known vulnerability in the locked packages, and no new secret in the files")
    return 1 if problems else 0


def _find_vulnerabilities() -> list[str]:
    """The advisories for the locked packages of all groups, or why they are unknown."""
    try:
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
            export = (_UV, "export", "--quiet", "--locked", "--all-groups", "--no-emit-workspace")
            _run(*export, "--format", "requirements-txt", "--output-file", requirements.name)
            audit = _run(
                *(sys.executable, "-m", "pip_audit", "--disable-pip", "--requirement", requirements.name),
                *("--format", "json", "--progress-spinner", "off"),
                is_checked=False,
            )
    except subprocess.SubprocessError as error:
        return [f"the vulnerabilities are UNKNOWN: {error}"]
    try:
        return describe_report(json.loads(audit.stdout))
    except ValueError:
        last = (audit.stderr.strip().splitlines() or ["no output"])[-1]
        return [f"the vulnerabilities are UNKNOWN, because pip-audit failed: {last}"]


def describe_report(report: Any) -> list[str]:
    """A line for each vulnerability of a report of pip-audit, and one for the packages that it didn't check.

    Without PyPI's JSON API, which some mirrors lack, pip-audit skips every package and still succeeds.
    """
    packages = report["dependencies"]
    skipped = [each["name"] for each in packages if "skip_reason" in each]
    lines = [
        f"{package['name']} {package['version']}: {found['id']}, "
        f"fixed in {', '.join(found['fix_versions']) or 'nothing'}"
        for package in packages
        for found in package.get("vulns", ())
    ]
    if skipped or not packages:
        lines.append(
            f"the vulnerabilities of {len(skipped)} of {len(packages)} packages are UNKNOWN ({', '.join(skipped[:3])}, "
            "...): this machine doesn't reach PyPI's advisories. Run the command on one that does"
        )
    return lines


def _find_secrets() -> list[str]:
    """The texts that look like secrets and aren't in the baseline."""
    scanned = json.loads(_scan().stdout)["results"]
    known = json.loads(_BASELINE.read_text())["results"] if _BASELINE.exists() else {}
    accepted = {(path, each["hashed_secret"]) for path, found in known.items() for each in found}
    return [
        f"{path}:{each['line_number']}: this looks like a secret ({each['type']})"
        for path, found in sorted(scanned.items())
        for each in found
        if (path, each["hashed_secret"]) not in accepted
    ]


def _accept_secrets() -> None:
    report = json.loads(_scan().stdout)
    del report["generated_at"]
    _BASELINE.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written: {_BASELINE.name}, with {sum(map(len, report['results'].values()))} texts that aren't secrets")


def _scan() -> subprocess.CompletedProcess[str]:
    return _run(sys.executable, "-m", "detect_secrets", "scan", "--exclude-files", _EXCLUDED)


def _run(*command: str, is_checked: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the command in the repository's folder. Its errors are shown if it must succeed."""
    return subprocess.run(
        command,
        cwd=_ROOT,
        check=is_checked,
        stdout=subprocess.PIPE,
        stderr=None if is_checked else subprocess.PIPE,
        text=True,
        timeout=_TIMEOUT_SECONDS,
    )


if __name__ == "__main__":
    sys.exit(main())
