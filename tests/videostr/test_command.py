"""What all commands share: exit statuses, and where messages go."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence

import pytest
from msgspec import Meta

from videostr.command import command, config_parser, typed
from videostr.errors import DataError, LearnerError


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (DataError("f: has no row", remedy="build it again"), 2, "error: f: has no row; build it again\n"),
        (LearnerError("rank 1 died"), 1, "error: rank 1 died\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
        (SystemExit(2), 2, ""),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_is_a_line_on_standard_error_and_a_status(
    error: BaseException, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @command
    def main(arguments: Sequence[str] | None = None) -> int:
        raise error

    assert main([]) == status
    assert capsys.readouterr().err == said


def test_a_reader_that_has_seen_enough_ends_a_command_without_a_word() -> None:
    says_much = (
        "from videostr.command import command, run_main\n"
        "run_main(command(lambda _: print(*range(100_000), sep='\\n') or 0))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", says_much], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "0\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_a_mistake_of_the_program_is_not_hidden() -> None:
    @command
    def main(arguments: Sequence[str] | None = None) -> int:
        raise TypeError("bug")

    with pytest.raises(TypeError):
        main([])


def test_options_are_read_as_keys_of_a_config_are(capsys: pytest.CaptureFixture[str]) -> None:
    from typing import Annotated

    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=typed(Annotated[int, Meta(ge=1)]))
    assert parser.parse_args(["--n", "3"]).n == 3
    with pytest.raises(SystemExit):
        parser.parse_args(["--n", "0"])
    assert "argument --n: 0: must be a whole number, at least 1" in capsys.readouterr().err


def test_a_command_with_a_config_takes_a_file_and_overrides() -> None:
    options = config_parser("x", None).parse_args(["--config", "f.yaml", "a.b=1", "c=2"])
    assert (options.config, options.overrides) == ("f.yaml", ["a.b=1", "c=2"])
