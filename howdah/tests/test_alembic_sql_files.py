"""The statements of .sql files."""

from __future__ import annotations

from pathlib import Path

import pytest

from howdah.alembic.sql_files import read_statements


@pytest.mark.parametrize(
    ("file", "statements"),
    [
        ("SELECT 1;\nSELECT 2", ["SELECT 1", "SELECT 2"]),
        ("SELECT ';';SELECT 'it''s; so'", ["SELECT ';'", "SELECT 'it''s; so'"]),
        ("-- it's; $$ a comment\nSELECT 1; -- the end;\n", ["-- it's; $$ a comment\nSELECT 1"]),
        ("DO $$ BEGIN; -- it's\n END $$; SELECT 1;", ["DO $$ BEGIN; -- it's\n END $$", "SELECT 1"]),
        ("-- nothing\n", []),
        ("", []),
    ],
)
def test_a_file_is_split_at_the_semicolons_between_statements(tmp_path: Path, file: str, statements: list[str]) -> None:
    tmp_path.joinpath("a.sql").write_text(file)
    assert list(read_statements(tmp_path)) == statements


def test_files_are_read_in_the_order_of_their_names_and_a_missing_folder_is_empty(tmp_path: Path) -> None:
    for name in ("b.sql", "a.sql", "c.txt"):
        tmp_path.joinpath(name).write_text(f"SELECT '{name}'")
    assert list(read_statements(tmp_path)) == ["SELECT 'a.sql'", "SELECT 'b.sql'"]
    assert list(read_statements(tmp_path / "nowhere")) == []
