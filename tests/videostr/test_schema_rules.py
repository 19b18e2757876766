"""Rules of schemas in words of the project's own, whatever msgspec calls them."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta

from videostr.schema_rules import field_problem


class Kind(Enum):
    A = "a"
    B = "b"


class Part(msgspec.Struct, forbid_unknown_fields=True):
    size: tuple[float, float]
    share: Annotated[float, Meta(ge=0, le=1)] = 0.0
    name: Annotated[str, Meta(pattern=r"^\w+$", description="one word")] = "x"


class Whole(msgspec.Struct):
    kind: Kind
    parts: Annotated[list[Part], Meta(min_length=1)]
    named: dict[str, Annotated[int, Meta(ge=2)]] = {}
    mode: Literal["fast", "slow"] = "fast"
    limit: Annotated[int, Meta(gt=0)] | None = None


GOOD: dict[str, Any] = {"kind": "a", "parts": [{"size": [1, 2]}]}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"kind": "c"}, "kind: must be one of a, b"),
        ({"mode": "medium"}, "mode: must be one of fast, slow"),
        ({"limit": 0}, "limit: must be a whole number, above 0, or null"),
        ({"limit": "3"}, "limit: must be a whole number, above 0, or null"),
        ({"named": {"x": 1}}, "named[...]: must be a whole number, at least 2"),
        ({"parts": []}, "parts: must be a list, each an object with size, share, name, not empty"),
        ({"parts": [{}]}, "parts[0].size: is missing"),
        ({"parts": [{"size": [1]}]}, "parts[0].size: must be a list of two numbers"),
        ({"parts": [{"size": [1, "2"]}]}, "parts[0].size[1]: must be a finite number"),
        ({"parts": [{"size": [1, 2], "share": 1.5}]}, "parts[0].share: must be a finite number, from 0 to 1"),
        ({"parts": [{"size": [1, 2], "name": "a b"}]}, "parts[0].name: must be one word"),
        (
            {"parts": [{"size": [1, 2], "colour": 1}]},
            "parts[0]: colour is not a field (the fields are size, share, name)",
        ),
    ],
)
def test_the_field_comes_first_and_then_its_rule(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(msgspec.ValidationError) as found:
        msgspec.convert(GOOD | change, Whole)
    assert field_problem(found.value, Whole) == expected


def test_a_field_that_is_missing_is_named() -> None:
    with pytest.raises(msgspec.ValidationError) as found:
        msgspec.convert({"kind": "a"}, Whole)
    assert field_problem(found.value, Whole) == "parts: is missing"
