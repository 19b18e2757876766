"""Errors of the project: message and remedy apart, together as text, and after a way through another process."""

from __future__ import annotations

import pickle

import pytest

from videostr import errors
from videostr.errors import ConfigError, VideoStrError, exit_status_of

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, VideoStrError)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_survives_pickling_with_its_remedy(kind: type[VideoStrError]) -> None:
    error = pickle.loads(pickle.dumps(kind("a.b = 1: must be 2", remedy="set a.b=2")))
    assert type(error) is kind
    assert (error.message, error.remedy, str(error)) == (
        "a.b = 1: must be 2",
        "set a.b=2",
        "a.b = 1: must be 2; set a.b=2",
    )


def test_an_error_without_a_remedy_is_its_message() -> None:
    assert str(VideoStrError("it ended")) == "it ended"


def test_every_error_is_in_the_tree_of_the_docstring() -> None:
    assert [
        kind.__name__
        for kind in KINDS
        if f" {kind.__name__} " not in f"{errors.__doc__}".replace("\n", " \n")
    ] == []


def test_bad_input_has_status_2_and_a_failure_on_the_way_1() -> None:
    assert {kind.__name__ for kind in KINDS if exit_status_of(kind("x")) == 2} == {
        "ConfigError", "DataError", "VideoError", "RecordError", "PromptError", "TooManyBadRecords", "ModelError",
        "PlacementError", "RunFolderError", "StorageError",
    }  # fmt: skip
    assert exit_status_of(ConfigError.of([ConfigError("x")])) == 2
