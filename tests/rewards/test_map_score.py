"""SpaceR's map score: golden values by hand, units, times, and what must not change it."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from rewards.map_score import map_score
from videostr.types import GraphFrame, Node, SceneGraph

Map = dict[str, list[tuple[float, ...]]]


def frame(places: Map, t: float = 0.0) -> GraphFrame:
    nodes = [
        Node(id=f"{label}.{i}", label=label, pos=tuple(map(float, pos)))
        for label, positions in places.items()
        for i, pos in enumerate(positions, start=1)
    ]
    return GraphFrame(t=t, nodes=tuple(nodes))


def graph(*maps: Map, unit: str = "grid", reference: str = "floor") -> SceneGraph:
    frames = tuple(frame(places, t=float(t)) for t, places in enumerate(maps))
    return SceneGraph(unit=unit, frame=reference, frames=frames)


D = 10 * math.sqrt(2)


@pytest.mark.parametrize(
    ("predicted", "truth", "value"),
    [
        ({}, {}, 1.0),
        ({"a": [(1, 1)]}, {}, 0.0),
        ({}, {"a": [(1, 1)]}, 0.0),
        ({"a": [(1, 1)]}, {"a": [(1, 1)]}, 1.0),
        ({"a": [(4, 5)]}, {"a": [(1, 1)]}, 1 - 5 / D),
        ({"a": [(10, 10)]}, {"a": [(0, 0)]}, 0.0),
        ({"a": [(900, 0)]}, {"a": [(0, 0)]}, 0.0),
        ({"b": [(1, 1)]}, {"a": [(1, 1)]}, 0.0),
        ({"a": [(1, 1)], "b": [(1, 1)]}, {"a": [(1, 1)]}, 1.0),  # an invented label has weight 0
        ({"a": [(1, 1), (9, 9)]}, {"a": [(1, 1)]}, 0.5),  # an invented instance has not
        ({"a": [(1, 1)]}, {"a": [(1, 1), (9, 9)]}, 0.5),
        ({"a": [(1, 1)]}, {"a": [(1, 1), (9, 9)], "b": [(5, 5)]}, 2 / 3 * 0.5),
        # Nearest first: 1-1, then 0-9.
        ({"a": [(0, 0), (1, 0)]}, {"a": [(1, 0), (9, 0)]}, (1 + 1 - 9 / D) / 2),
    ],
)
def test_maps_by_hand(predicted: Map, truth: Map, value: float) -> None:
    assert map_score(graph(predicted), graph(truth)) == pytest.approx(value)


def test_greedy_pairs_are_not_the_best_assignment() -> None:
    # Nearest is (0, 0) to (3, 4), 5 apart, just before (6.5, 0) to (3, 4), 5.3 apart; that leaves a pair 10.3 apart.
    # Crosswise they are 8 and 5.3 apart.
    predicted, truth = {"a": [(0, 0), (6.5, 0)]}, {"a": [(3, 4), (0, 8)]}
    greedy = 2 - (5 + math.hypot(6.5, 8)) / D
    best = 2 - (8 + math.hypot(3.5, 4)) / D
    assert greedy < best
    assert map_score(graph(predicted), graph(truth)) == pytest.approx(greedy / 2)


def test_pixels_are_hundredths_of_a_cell() -> None:
    predicted, truth = {"a": [(400, 500)]}, {"a": [(100, 100)]}
    score = map_score(
        graph(predicted, unit="px", reference="image"), graph(truth, unit="px", reference="image")
    )
    assert score == pytest.approx(1 - 5 / D)


def test_metres_are_laid_on_the_grid_by_the_true_scene() -> None:
    # camera0: the ground plane is (x, z), heights do not count. The true box is 20 x 5 m: 2 m a cell.
    truth = graph({"a": [(0, 0, 10)], "b": [(20, 3, 15)]}, unit="m", reference="camera0")
    predicted = graph({"a": [(6, 99, 18)], "b": [(20, 3, 15)]}, unit="m", reference="")
    assert map_score(predicted, truth) == pytest.approx((1 - 5 / D + 1) / 2)


def test_one_grid_for_all_frames() -> None:
    # Node a walks 20 m: 2 m a cell, in the first frame too, where the box alone would be 4 m wide.
    truth = graph({"a": [(0, 0)], "b": [(4, 0)]}, {"a": [(20, 0)], "b": [(4, 0)]}, unit="m")
    predicted = graph({"a": [(0, 2)], "b": [(4, 0)]}, {"a": [(20, 0)], "b": [(4, 0)]}, unit="m")
    assert map_score(predicted, truth) == pytest.approx(((1 - 1 / D + 1) / 2 + 1) / 2)


def test_a_scene_without_extent_has_cells_of_a_metre() -> None:
    truth, predicted = graph({"a": [(7, 7)]}, unit="m"), graph({"a": [(10, 11)]}, unit="m")
    assert map_score(predicted, truth) == pytest.approx(1 - 5 / D)


def test_other_units_and_dimensions_earn_nothing() -> None:
    truth = graph({"a": [(1, 1)]})
    assert map_score(replace(truth, unit="px"), truth) == 0.0
    assert map_score(graph({"a": [(1, 1, 1)]}), truth) == 0.0
    assert map_score(graph({"a": [(1, 1)]}, unit="m"), graph({}, unit="m", reference="camera0")) == 0.0


def test_frames_are_paired_by_time_and_an_unstated_one_earns_nothing() -> None:
    there, away = {"a": [(0, 0)]}, {"a": [(3, 4)]}
    truth = graph(there, there, there)  # t = 0, 1, 2
    off = 1 - 5 / D

    def stated(*frames: tuple[float, Map]) -> SceneGraph:
        return replace(truth, frames=tuple(frame(places, t) for t, places in frames))

    assert map_score(stated((0.0, there)), truth) == pytest.approx(1 / 3)
    assert map_score(stated((0.4, there), (1.3, away), (2.0, there)), truth) == pytest.approx((2 + off) / 3)
    assert map_score(stated((2.0, there), (9.0, there)), truth) == pytest.approx(1 / 3)
    # Two for one time: the nearer counts, whatever the order.
    assert map_score(stated((0.0, away), (0.2, there)), truth) == pytest.approx(off / 3)
    assert map_score(stated((0.2, there), (0.0, away)), truth) == pytest.approx(off / 3)


_cell = st.integers(0, 10)
_maps = st.dictionaries(st.sampled_from("abc"), st.lists(st.tuples(_cell, _cell), max_size=5), max_size=3)


@given(_maps, _maps, st.randoms(use_true_random=False))
def test_the_order_of_nodes_does_not_matter_and_the_truth_earns_1(
    predicted: Map, truth: Map, rng: random.Random
) -> None:
    score = map_score(graph(predicted), graph(truth))
    assert 0.0 <= score <= 1.0
    shuffled = [
        {label: rng.sample(p, len(p)) for label, p in places.items()} for places in (predicted, truth)
    ]
    assert map_score(graph(shuffled[0]), graph(shuffled[1])) == pytest.approx(score, abs=1e-12)
    assert map_score(graph(truth), graph(truth)) == pytest.approx(1.0)


@given(_maps, _maps, st.integers(-50, 50))
@example({"a": [(0, 0), (1, 2)]}, {"a": [(0, 2), (1, 3)]}, 1)  # a tie that rounding would break
def test_only_differences_of_positions_count(predicted: Map, truth: Map, shift: int) -> None:
    def moved(places: Map) -> Map:
        return {label: [(x + shift, y - shift) for x, y in positions] for label, positions in places.items()}

    for unit in ("grid", "px", "m"):
        here = map_score(graph(predicted, unit=unit), graph(truth, unit=unit))
        there = map_score(graph(moved(predicted), unit=unit), graph(moved(truth), unit=unit))
        assert there == pytest.approx(here, abs=1e-12)
