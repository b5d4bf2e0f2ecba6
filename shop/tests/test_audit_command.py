"""`make audit` reports vulnerabilities, and never takes an unknown result for a good one."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from tools import audit

SAFE = {"name": "safe", "version": "1.0", "vulns": []}
VULNERABLE = {"name": "old", "version": "2.0", "vulns": [{"id": "CVE-1", "fix_versions": ["2.1"]}]}
SKIPPED = {"name": "hidden", "skip_reason": "not found on PyPI"}


def test_each_vulnerability_is_reported() -> None:
    assert audit.describe_report({"dependencies": [SAFE]}) == []
    assert audit.describe_report({"dependencies": [SAFE, VULNERABLE]}) == ["old 2.0: CVE-1, fixed in 2.1"]


@pytest.mark.parametrize("packages", [[], [SKIPPED], [SAFE, SKIPPED]])
def test_packages_that_were_not_checked_are_a_problem(packages: list[dict[str, Any]]) -> None:
    [line] = audit.describe_report({"dependencies": packages})
    assert "UNKNOWN" in line


def test_the_search_for_secrets_runs_if_the_other_part_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*command: str, is_checked: bool = True) -> subprocess.CompletedProcess[str]:
        raise subprocess.CalledProcessError(2, command[0])

    monkeypatch.setattr("sys.argv", ["audit.py"])
    monkeypatch.setattr(audit, "_run", fail)
    monkeypatch.setattr(audit, "_find_secrets", lambda: ["app.py:1: this looks like a secret (Hex)"])
    assert audit.main() == 1
    unknown, secret = capsys.readouterr().err.splitlines()
    assert "UNKNOWN" in unknown
    assert secret.startswith("app.py:1:")
