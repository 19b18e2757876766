"""Files that a kill leaves whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from videostr.files import keep_lines, replacing


@pytest.mark.parametrize("cut", ["", '{"step": 3', "\x00\x00"])
def test_what_a_kill_left_does_not_join_what_comes_next(tmp_path: Path, cut: str) -> None:
    """The last line may be whole and lack its end."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}' + ("\n" + cut if cut else ""))
    assert keep_lines(path, lambda row: row["step"] < 9) == [{"step": 1}, {"step": 2}]
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert keep_lines(path, lambda row: row["step"] < 2) == [{"step": 1}]
    assert path.read_text() == '{"step": 1}\n'


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "about.txt"
    path.write_text("old")

    def half(scratch: Path) -> None:
        scratch.write_text("half")
        raise OSError("full")

    with pytest.raises(OSError, match="full"), replacing(path) as scratch:
        half(scratch)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
