"""The tutorial, as a reader follows it: from an empty directory, with the built wheel, every command as printed."""

from __future__ import annotations

import shutil
from collections import Counter

import pytest

from howdah_tests.support.terminal import open_terminal
from howdah_tests.support.tutorial import TUTORIAL, follow, read_steps


@pytest.mark.timeout(300)
@pytest.mark.skipif(shutil.which("curl") is None, reason="the tutorial sends its requests with curl")
def test_the_tutorial_works_as_printed() -> None:
    """The commands of its last section, about `howdah new`, are in `test_scaffold`."""
    page, last_section, _ = TUTORIAL.read_text().partition("## 6. Create a service with one command")
    assert last_section
    steps = list(read_steps(page))
    with open_terminal() as terminal:
        for step in steps:
            follow(terminal, step)
        terminal.run("howdah db stop")
    kinds = Counter(step.kind for step in steps)
    assert (kinds["file"], kinds["stop"]) == (7, 1)
    assert kinds["command"] >= 18
