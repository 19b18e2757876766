"""Graph reward: golden values by hand, the invariances of method section 3, and what shortcuts score."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from rewards.graph import GraphRule, GraphScore, prepare, reward, reward_group
from videostr.types import Edge, GraphAbsence, GraphFrame, Node, SceneGraph

Positions = dict[str, tuple[float, ...]]


def frame(
    positions: Positions, t: float = 0.0, edges: tuple[Edge, ...] = (), size: float | None = None
) -> GraphFrame:
    nodes = tuple(
        Node(
            id=name, label=name.rpartition(".")[0], pos=pos, size=None if size is None else (size,) * len(pos)
        )
        for name, pos in positions.items()
    )
    return GraphFrame(t=t, nodes=nodes, edges=edges)


def graph(*frames: GraphFrame, reference: str = "floor", unit: str = "m") -> SceneGraph:
    return SceneGraph(unit=unit, frame=reference, frames=frames)


def judge(predicted: SceneGraph, truth: SceneGraph, **rule: object) -> GraphScore:
    chosen = GraphRule(**rule)  # type: ignore[arg-type]
    return reward(predicted, prepare(truth, chosen), chosen)


# ------------------------------------------------------------------------------------------- golden values

# Corners of a right triangle: centroid (1, 4/3); squared distances to it 25/9, 52/9, 73/9, so rms = sqrt(50/9).
TRIANGLE: Positions = {"a.1": (0.0, 0.0), "b.1": (3.0, 0.0), "c.1": (0.0, 4.0)}
TAU = math.sqrt(50 / 9)


def test_truth_earns_one() -> None:
    score = judge(graph(frame(TRIANGLE)), graph(frame(TRIANGLE)))
    assert (score.graph, score.node, score.edge, score.notes) == (1.0, 1.0, 1.0, ())


def test_a_node_loses_credit_with_its_distance() -> None:
    # b is off by 1: credits 1, 1 - 1/TAU, 1.
    moved = graph(frame(TRIANGLE | {"b.1": (2.0, 0.0)}))
    assert judge(moved, graph(frame(TRIANGLE))).node == pytest.approx((3 - 1 / TAU) / 3)
    assert judge(moved, graph(frame(TRIANGLE)), node_tolerance=0.5).node == pytest.approx((3 - 2 / TAU) / 3)


def test_the_edge_term_of_a_moved_node() -> None:
    # b at (2, 0) instead of (3, 0). Distances: ab 2 for 3, bc sqrt 20 for 5, ac 4 for 4; angles: ab 0 for 0,
    # bc 116.565 for 126.870, ac 90 for 90. delta = (0, -10.305, 0); its circular mean is delta_bar.
    d = (1 - (1 / 3) / 0.5, 1 - (5 - math.sqrt(20)) / 5 / 0.5, 1.0)
    turn = (
        math.degrees(math.atan2(2, -4)) * -1 + math.degrees(math.atan2(4, -2)) * 0
    )  # angle b -> c is atan2(4, -2)
    angle = math.degrees(math.atan2(4, -2)) - math.degrees(math.atan2(4, -3))
    sine, cosine = math.sin(math.radians(angle)) / 3, (2 + math.cos(math.radians(angle))) / 3
    turn = math.degrees(math.atan2(sine, cosine))
    e = (1 - abs(turn) / 60, 1 - abs(angle - turn) / 60, 1 - abs(turn) / 60)
    expected = sum(0.5 * x + 0.5 * y for x, y in zip(d, e, strict=True)) / 3
    score = judge(graph(frame(TRIANGLE | {"b.1": (2.0, 0.0)})), graph(frame(TRIANGLE)))
    assert angle == pytest.approx(-10.3048, abs=1e-4)
    assert score.edge == pytest.approx(expected)
    assert score.graph == pytest.approx(0.5 * score.node + 0.5 * expected)


def test_a_group_scores_as_its_graphs_do_one_by_one() -> None:
    truth = scene(7, "aabbc", "camera0")
    group = [
        noisy(truth, 1, 0.5),
        GraphAbsence.ABSENT,
        scene(8, "abc", "camera0"),
        replace(truth, unit="px"),
        noisy(scene(7, "aabbcc", "camera0"), 2, 2.0),
        truth,
    ]
    rule = GraphRule()
    target = prepare(truth, rule)
    scores = reward_group(group, target, rule)
    assert scores == [reward(one, target, rule) for one in group]
    assert [score.graph for score in scores[1:6:2]] == [0.0, 0.0, 1.0]


def test_missing_extra_and_invented_nodes_all_cost() -> None:
    truth = graph(frame({"a.1": (0.0, 0.0), "a.2": (4.0, 0.0)}))
    # one of two: 1/2; two of three: 2/3; both and an invented label: 2/3
    assert judge(graph(frame({"a.7": (0.0, 0.0)})), truth).node == pytest.approx(1 / 2)
    three = {"a.1": (0.0, 0.0), "a.2": (4.0, 0.0), "a.3": (9.0, 0.0)}
    assert judge(graph(frame(three)), truth).node == pytest.approx(2 / 3)
    assert judge(graph(frame(three)), truth).edge == pytest.approx(1 / 3)  # one true pair, three predicted
    invented = judge(graph(frame({"a.1": (0.0, 0.0), "a.2": (4.0, 0.0), "x.1": (9.0, 0.0)})), truth)
    assert invented.node == pytest.approx(2 / 3)
    assert invented.notes == ("graph: not in the scene: x (1)",)


def test_nodes_are_matched_for_the_most_credit_in_sum() -> None:
    # True a at 0 and 4, tau = 2; predicted at 1 and 1.5. Straight: 1 - 1/2 and 0; crossed: 1 - 1.5/2 and 0.
    truth = graph(frame({"a.1": (0.0, 0.0), "a.2": (4.0, 0.0)}))
    assert judge(graph(frame({"a.1": (1.5, 0.0), "a.2": (1.0, 0.0)})), truth).node == pytest.approx(0.25)


def test_the_extent_of_nodes_widens_the_tolerance() -> None:
    # one node, extent 2 on both axes: tau = 2, off by 0.5
    truth = graph(frame({"a.1": (0.0, 0.0)}, size=2.0))
    score = judge(graph(frame({"a.1": (0.5, 0.0)})), truth)
    assert score.node == pytest.approx(0.75)
    assert score.edge is None
    assert score.graph == score.node


def test_one_pair_in_the_whole_clip_is_judged_by_its_distance() -> None:
    # distance 3 for 4: 1 - 0.25/0.5, whatever the direction
    truth = graph(frame({"a.1": (0.0, 0.0), "b.1": (4.0, 0.0)}))
    assert judge(graph(frame({"a.1": (0.0, 0.0), "b.1": (0.0, 3.0)})), truth).edge == pytest.approx(0.5)


AWAY: Positions = {"a.1": (0.0, 0.0), "b.1": (4.0, 0.0)}
TURNED: Positions = {"a.1": (0.0, 0.0), "b.1": (0.0, 4.0)}
STILL: Positions = {"a.1": (0.0, 0.0), "b.1": (3.0, 0.0)}


def test_the_same_two_objects_in_all_frames_are_judged_by_their_distance() -> None:
    # b circles a at a distance of 4; held still at a distance of 3 each frame has 1 - 0.25/0.5. With angles the deltas were
    # 0 and -90, both 45 from their mean: 0.25 for a direction that nobody looked at.
    still = graph(frame(STILL, 0.0), frame(STILL, 1.0))
    assert judge(still, graph(frame(AWAY, 0.0), frame(TURNED, 1.0))).edge == pytest.approx(0.5)
    # A frame with one object or none changes nothing.
    truth = graph(frame(AWAY, 0.0), frame(TURNED, 1.0), frame({"c.1": (1.0, 1.0)}, 2.0), frame({}, 3.0))
    stated = graph(frame(STILL, 0.0), frame(STILL, 1.0), frame({"c.1": (1.0, 1.0)}, 2.0), frame({}, 3.0))
    assert judge(stated, truth).edge == pytest.approx(0.5)


def test_other_objects_in_another_frame_are_another_pair() -> None:
    # deltas 0 and -90: mean -45, so both have e_a = 1 - 45/60; e_d = 0.5
    def renamed(positions: Positions) -> Positions:
        return {{"a.1": "c.1", "b.1": "d.1"}[name]: pos for name, pos in positions.items()}

    truth = graph(frame(AWAY, 0.0), frame(renamed(TURNED), 1.0))
    still = graph(frame(STILL, 0.0), frame(renamed(STILL), 1.0))
    assert judge(still, truth).edge == pytest.approx(0.5 * 0.5 + 0.5 * 0.25)
    # Also where only the instance differs: objects are told apart by their ids.
    second = {"a.1": "a.2", "b.1": "b.1"}
    truth = graph(frame(AWAY, 0.0), frame({second[name]: pos for name, pos in TURNED.items()}, 1.0))
    assert judge(still_of(truth, STILL), truth).edge == pytest.approx(0.5 * 0.5 + 0.5 * 0.25)


def still_of(truth: SceneGraph, positions: Positions) -> SceneGraph:
    """The truth with its nodes at the places of `positions`, in their order."""
    places = [*positions.values()]
    return replace(
        truth,
        frames=tuple(
            replace(f, nodes=tuple(replace(n, pos=places[k]) for k, n in enumerate(f.nodes)))
            for f in truth.frames
        ),
    )


def test_a_single_matched_pair_is_judged_by_its_distance() -> None:
    # Three true pairs in each of two frames, one of the six matched: e_d = 1 - (1/3)/0.5 = 1/3 of three pairs, and nothing else.
    truth = graph(frame(TRIANGLE, 0.0), frame(TRIANGLE, 1.0))
    stated = graph(frame({"a.1": (0.0, 0.0), "b.1": (0.0, 2.0)}, 0.0), frame({"a.1": (0.0, 0.0)}, 1.0))
    assert judge(stated, truth).edge == pytest.approx((1 / 3) / 3 / 2)


def test_bearings_that_turn_in_all_directions_share_no_rotation() -> None:
    # Two pairs of four objects, one as in the truth, one reversed: their deltas, 0 and 180, cancel. The first is taken for the
    # rotation, so one of the two has its angle right, however the prediction is turned.
    truth = graph(frame(AWAY, 0.0), frame({"c.1": (0.0, 0.0), "d.1": (4.0, 0.0)}, 1.0))
    stated = graph(frame(AWAY, 0.0), frame({"c.1": (4.0, 0.0), "d.1": (0.0, 0.0)}, 1.0))
    for degrees in (0.0, 30.0, 90.0, -135.0):
        assert judge(change(stated, turn(degrees, "floor")), truth).edge == pytest.approx(0.75)


def test_nodes_that_coincide_have_no_bearing() -> None:
    # all at one place: distances 0 (e_d = 0) and no bearings (e_a = 0)
    assert judge(graph(frame(dict.fromkeys(TRIANGLE, (1.0, 4 / 3)))), graph(frame(TRIANGLE))).edge == 0.0


def test_a_true_pair_one_above_the_other_is_judged_by_its_distance() -> None:
    tower: Positions = {"a.1": (0.0, 0.0, 0.0), "b.1": (0.0, -2.0, 0.0), "c.1": (3.0, 0.0, 1.0)}
    truth = graph(frame(tower), reference="camera0")
    assert judge(truth, truth).edge == 1.0


def test_frames_that_are_not_stated_earn_nothing() -> None:
    truth = graph(*(frame(TRIANGLE, t) for t in (0.0, 1.0, 2.0, 3.0)))
    stated = graph(frame(TRIANGLE, 0.4), frame(TRIANGLE, 1.6), frame(TRIANGLE, 3.6))
    score = judge(stated, truth)  # 0.4 -> 0, 1.6 -> 2, 3.6 is beyond half the spacing of 3
    assert score.graph == pytest.approx(0.5)
    assert score.notes == ("graph: nothing stated for t = 1, 3",)
    assert judge(graph(frame(TRIANGLE, 0.5), frame(TRIANGLE, 2.0)), truth).graph == pytest.approx(0.5)


def test_an_empty_frame_stated_as_empty_is_right() -> None:
    truth = graph(frame({}, 0.0), frame(TRIANGLE, 1.0))
    assert judge(truth, truth).graph == 1.0
    assert judge(graph(frame(TRIANGLE, 0.0), frame(TRIANGLE, 1.0)), truth).node == pytest.approx(0.5)
    assert judge(graph(frame({}, 0.0), frame({}, 1.0)), truth).node == pytest.approx(0.5)


@pytest.mark.parametrize("reference", ["floor", "camera0", "image"])
def test_a_true_graph_without_nodes_is_right_when_stated(reference: str) -> None:
    truth = graph(frame({}, 0.0), frame({}, 1.0), reference=reference)
    score = judge(truth, truth)
    assert (score.graph, score.node, score.edge) == (1.0, 1.0, None)
    for position in ((1.0, 2.0), (1.0, 2.0, 3.0)):
        invented = graph(frame({}, 0.0), frame({"a.1": position, "a.2": position}, 1.0))
        assert judge(invented, truth).graph == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("edges", "expected"),
    [
        # One true pair at distance 4. Positions say 3 (credit 0.5), the edge says 4 (credit 1).
        ("stated_or_derived", 1.0),
        ("derived", 0.5),
        ("stated", 1.0),
    ],
)
def test_which_edges_count(edges: str, expected: float) -> None:
    truth = graph(frame({"a.1": (0.0, 0.0), "b.1": (4.0, 0.0)}))
    positions: Positions = {"a.1": (0.0, 0.0), "b.1": (3.0, 0.0)}
    said = graph(frame(positions, edges=(Edge(a="b.1", b="a.1", dist=4.0, angle=180.0),)))
    assert judge(said, truth, edges=edges).edge == pytest.approx(expected)
    if edges == "stated":
        assert judge(graph(frame(positions)), truth, edges=edges).edge == 0.0


def test_a_stated_edge_counts_in_either_direction() -> None:
    edge = Edge(a="c.1", b="a.1", dist=4.0, angle=-90.0)
    flipped = Edge(a="a.1", b="c.1", dist=4.0, angle=90.0)
    scrambled = TRIANGLE | {"c.1": (9.0, 9.0)}
    both = [judge(graph(frame(scrambled, edges=(e,))), graph(frame(TRIANGLE))).edge for e in (edge, flipped)]
    assert both[0] == pytest.approx(both[1])
    assert both[0] > judge(graph(frame(scrambled)), graph(frame(TRIANGLE))).edge


def test_relative_scale_forgives_a_common_factor() -> None:
    tripled = graph(frame({name: (3 * x, 3 * y) for name, (x, y) in TRIANGLE.items()}))
    assert judge(tripled, graph(frame(TRIANGLE)), scale="relative").edge == pytest.approx(1.0)
    assert judge(tripled, graph(frame(TRIANGLE))).edge == pytest.approx(0.5)  # bearings only


def test_another_unit_or_dimension_earns_nothing_and_says_so() -> None:
    truth = graph(frame(TRIANGLE))
    for other in (
        graph(frame(TRIANGLE), unit="px"),
        graph(frame({name: (*pos, 0.0) for name, pos in TRIANGLE.items()})),
    ):
        score = judge(other, truth)
        assert score.graph == 0.0
        assert score.notes


# --------------------------------------------------------------------------------------------- invariances


def scene(seed: int, labels: str, reference: str = "floor", num_frames: int = 3) -> SceneGraph:
    """A random scene of moving objects, one per letter; the same letter twice is two instances of a label."""
    rng = np.random.default_rng(seed)
    dimension = 3 if reference == "camera0" else 2
    start, speed = rng.uniform(0, 10, (len(labels), dimension)), rng.normal(0, 1, (len(labels), dimension))
    names = [f"{label}.{labels[: i + 1].count(label)}" for i, label in enumerate(labels)]
    return graph(
        *(
            frame(dict(zip(names, map(tuple, (start + t * speed).tolist()), strict=True)), float(t))
            for t in range(num_frames)
        ),
        reference=reference,
    )


def change(scene: SceneGraph, move: Callable[[np.ndarray], np.ndarray]) -> SceneGraph:
    frames = tuple(
        replace(f, nodes=tuple(replace(n, pos=tuple(move(np.array(n.pos)).tolist())) for n in f.nodes))
        for f in scene.frames
    )
    return replace(scene, frames=frames)


def noisy(scene: SceneGraph, seed: int, sigma: float) -> SceneGraph:
    rng = np.random.default_rng(seed)
    return change(scene, lambda pos: pos + rng.normal(0, sigma, pos.shape))


def turn(degrees: float, reference: str) -> Callable[[np.ndarray], np.ndarray]:
    """Rotation about the vertical."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    if reference == "camera0":
        return lambda p: np.array([c * p[0] - s * p[2], p[1], s * p[0] + c * p[2]])
    return lambda p: np.array([c * p[0] - s * p[1], s * p[0] + c * p[1]])


seeds = st.integers(0, 2**32 - 1)
labels = st.sampled_from(["ab", "aa", "abc", "aab", "aaa", "abcd", "aabb", "aabbc", "aaaaa"])
references = st.sampled_from(["floor", "camera0", "image"])
many = settings(max_examples=250, deadline=None)


@given(seeds, labels, references, st.floats(-720, 720), st.floats(-50, 50), st.sampled_from([0.0, 0.5, 3.0]))
@many
def test_edges_do_not_depend_on_the_viewpoint(
    seed: int, labels: str, reference: str, degrees: float, shift: float, sigma: float
) -> None:
    truth = scene(seed, labels, reference)
    predicted = noisy(truth, seed + 1, sigma)
    turned = change(predicted, lambda p: turn(degrees, reference)(p) + shift)
    assert judge(turned, truth).edge == pytest.approx(judge(predicted, truth).edge, abs=1e-9)


@given(seeds, st.floats(-720, 720))
@many
def test_the_truth_seen_from_elsewhere_keeps_its_edges(seed: int, degrees: float) -> None:
    for names in ("aab", "aabb", "aaaa"):
        truth = scene(seed, names)
        assert judge(change(truth, turn(degrees, "floor")), truth).edge == pytest.approx(1.0, abs=1e-9)


@given(seeds, st.sampled_from(["abc", "abcd", "abcde"]))
@many
def test_edges_drop_under_a_mirror_image(seed: int, labels: str) -> None:
    truth = scene(seed, labels)
    mirrored = change(truth, lambda p: p * np.array([-1.0, 1.0]))
    assert judge(mirrored, truth).edge < 1 - 1e-3


@given(seeds, labels, st.sampled_from([0.3, 3.0]))
@many
def test_no_term_depends_on_the_order_of_nodes_and_edges_or_on_instance_numbers(
    seed: int, labels: str, sigma: float
) -> None:
    rng = np.random.default_rng(seed)
    truth = scene(seed, labels)
    predicted = noisy(truth, seed + 1, sigma)
    ends = [n.id for n in predicted.frames[0].nodes][:2]
    edges = (Edge(a=ends[0], b=ends[1], dist=2.0, angle=30.0),)
    predicted = replace(predicted, frames=tuple(replace(f, edges=edges) for f in predicted.frames))
    shuffled = replace(predicted, frames=tuple(renamed(f, rng) for f in predicted.frames))
    before, after = judge(predicted, truth), judge(shuffled, truth)
    assert (after.graph, after.node) == pytest.approx((before.graph, before.node), abs=1e-9)
    assert after.edge == pytest.approx(before.edge, abs=1e-9)


def renamed(item: GraphFrame, rng: np.random.Generator) -> GraphFrame:
    """The frame with nodes in another order, instance numbers exchanged and edges turned round."""
    numbers = rng.permutation(len(item.nodes)) + 1
    name = {n.id: f"{n.label}.{k}" for n, k in zip(item.nodes, numbers.tolist(), strict=True)}
    nodes = [replace(n, id=name[n.id]) for n in item.nodes]
    edges = [
        replace(e, a=name[e.b], b=name[e.a], angle=None if e.angle is None else e.angle - 180.0)
        for e in item.edges
    ]
    order = rng.permutation(len(nodes)).tolist()
    return replace(item, nodes=tuple(nodes[i] for i in order), edges=tuple(edges))


LATTICE = [
    # of the truth, then of the prediction; all of one label
    ([(6, 2), (5, 2), (0, 4), (6, 2), (8, 6)], [(5, 5), (1, 4), (1, 4), (3, 7), (2, 6)]),
    ([(0, 0), (1, 0), (2, 0), (3, 0)], [(7, 1), (8, 1), (9, 1), (10, 1)]),
    ([(0, 1), (1, 0), (0, -1), (-1, 0)], [(1, 1), (1, -1), (-1, -1), (-1, 1)]),
    ([(0, 0), (2, 0), (1, 3)], [(1, 1), (1, 1), (1, 1)]),
    ([(0, 0), (0, 0), (1, 3)], [(0, 0), (5, 0), (0, 5)]),
]


@pytest.mark.parametrize(("true", "said"), LATTICE)
def test_equal_costs_are_not_decided_by_the_order_of_writing(
    true: list[tuple[int, int]], said: list[tuple[int, int]]
) -> None:
    def of(places: Sequence[tuple[int, int]]) -> SceneGraph:
        return graph(frame({f"a.{k}": (float(x), float(y)) for k, (x, y) in enumerate(places, start=1)}))

    scores = [judge(of(order), of(true)) for order in itertools.permutations(said)]
    scores += [judge(of(said), of(order)) for order in itertools.permutations(true)]
    assert [s.edge for s in scores] == pytest.approx([scores[0].edge] * len(scores), abs=1e-9)
    assert [s.node for s in scores] == pytest.approx([scores[0].node] * len(scores), abs=1e-9)


@st.composite
def symmetric_scenes(draw: st.DrawFn, reference: str, num_frames: int, *, edges: bool) -> SceneGraph:
    """A scene in which much is equally good: points of a small grid, some of them alike, or corners of a polygon."""
    frames = []
    for t in range(num_frames):
        names = draw(st.lists(st.sampled_from("aaab"), max_size=6))
        ids = [f"{label}.{names[: k + 1].count(label)}" for k, label in enumerate(names)]
        if draw(st.booleans()):
            grid = st.tuples(*[st.integers(0, 3)] * (3 if reference == "camera0" else 2))
            places = [tuple(map(float, draw(grid))) for _ in ids]
        else:
            corners = [2 * math.pi * k / len(ids) for k in range(len(ids))]
            places = [
                (math.cos(x), 0.0, math.sin(x)) if reference == "camera0" else (math.cos(x), math.sin(x))
                for x in corners
            ]
        pairs = (
            draw(st.lists(st.sampled_from([*itertools.combinations(ids, 2)]), unique=True))
            if edges and len(ids) > 1
            else []
        )
        said = tuple(
            Edge(
                a=a,
                b=b,
                dist=draw(st.sampled_from([None, 1.0, 2.0])),
                angle=draw(st.sampled_from([None, 90.0])),
            )
            for a, b in pairs
        )
        frames.append(frame(dict(zip(ids, places, strict=True)), float(t), said))
    return graph(*frames, reference=reference)


@given(
    st.data(),
    references,
    st.integers(1, 3),
    st.sampled_from(["absolute", "relative"]),
    seeds,
    st.floats(-720, 720),
)
@many
def test_ties_depend_neither_on_the_order_of_writing_nor_on_the_viewpoint(
    data: st.DataObject, reference: str, num_frames: int, scale: str, seed: int, degrees: float
) -> None:
    truth = data.draw(symmetric_scenes(reference, num_frames, edges=False))
    predicted = data.draw(symmetric_scenes(reference, num_frames, edges=True))
    assume(not any(told_apart_by_edges_alone(f) for f in predicted.frames))
    rng = np.random.default_rng(seed)
    before = judge(predicted, truth, scale=scale)
    shuffled = replace(predicted, frames=tuple(renamed(f, rng) for f in predicted.frames))
    true_shuffled = replace(truth, frames=tuple(reordered(f, rng) for f in truth.frames))
    for after in (judge(shuffled, truth, scale=scale), judge(predicted, true_shuffled, scale=scale)):
        assert after.node == pytest.approx(before.node, abs=1e-9)
        assert after.edge == pytest.approx(before.edge, abs=1e-9)
    seen = change(predicted, lambda p: turn(degrees, reference)(p) + 5.0)
    turned_edges = [
        tuple(replace(e, angle=None if e.angle is None else e.angle + degrees) for e in f.edges)
        for f in seen.frames
    ]
    seen = replace(
        seen, frames=tuple(replace(f, edges=e) for f, e in zip(seen.frames, turned_edges, strict=True))
    )
    assert judge(seen, truth, scale=scale).edge == pytest.approx(before.edge, abs=1e-9)


def told_apart_by_edges_alone(item: GraphFrame) -> bool:
    """Whether two nodes of one label at one place differ in stated edges: docs/rewards.md excepts them."""
    ends = Counter(end for edge in item.edges for end in (edge.a, edge.b))
    alike = itertools.combinations(item.nodes, 2)
    return any((a.label, a.pos) == (b.label, b.pos) and (ends[a.id] or ends[b.id]) for a, b in alike)


def reordered(item: GraphFrame, rng: np.random.Generator) -> GraphFrame:
    """The frame with its nodes in another order."""
    return replace(item, nodes=tuple(item.nodes[i] for i in rng.permutation(len(item.nodes)).tolist()))


def test_a_crowd_on_a_grid_is_matched_the_same_in_any_order() -> None:
    # 64 nodes of one label, 112 pairs as long as their neighbours: more equally good motions than are tried.
    places = [(float(x), float(y)) for x in range(8) for y in range(8)]
    crowd = graph(frame({f"a.{k}": place for k, place in enumerate(places)}))
    two = graph(frame({"a.1": (0.0, 0.0), "a.2": (1.0, 0.0), "b.1": (40.0, 3.0)}))
    truth = scene(3, "a" * 64, num_frames=1)
    for true, said in ((two, crowd), (truth, crowd), (crowd, crowd)):
        shuffled = [
            replace(said, frames=(renamed(said.frames[0], np.random.default_rng(seed)),)) for seed in range(3)
        ]
        edges = [judge(one, true).edge for one in (said, *shuffled)]
        assert edges == pytest.approx([edges[0]] * 4, abs=1e-9)
    assert judge(change(crowd, turn(30.0, "floor")), crowd).edge == pytest.approx(1.0)


@given(seeds, labels, references, st.floats(-720, 720))
@many
def test_nodes_do_not_change_when_both_sides_turn(
    seed: int, labels: str, reference: str, degrees: float
) -> None:
    truth = scene(seed, labels, reference)
    predicted = noisy(truth, seed + 1, 1.0)
    both = [change(side, turn(degrees, reference)) for side in (predicted, truth)]
    assert judge(both[0], both[1]).node == pytest.approx(judge(predicted, truth).node, abs=1e-9)


@given(seeds, st.floats(0.01, 100), labels)
@many
def test_relative_edges_do_not_change_with_scale(seed: int, factor: float, labels: str) -> None:
    truth = scene(seed, labels)
    predicted = noisy(truth, seed + 1, 0.5)
    scores = [
        judge(p, truth, scale="relative").edge for p in (predicted, change(predicted, lambda p: p * factor))
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-9)


@given(seeds, seeds, labels, labels)
@many
def test_all_terms_stay_between_zero_and_one(seed: int, other: int, labels: str, named: str) -> None:
    score = judge(scene(other, named), scene(seed, labels))
    assert 0 <= score.node <= 1
    assert score.edge is not None
    assert 0 <= score.edge <= 1
    assert 0 <= score.graph <= 1


# -------------------------------------------------------------------------------------------------- probes

WIDTH = 10.0


def crossing(seed: int, num_nodes: int) -> SceneGraph:
    """Objects of different labels, each on its way from one random place to another, at four times."""
    rng = np.random.default_rng(seed)
    start, end = rng.uniform(0, WIDTH, (2, num_nodes, 2))
    names = [f"{label}.1" for label in "abcde"[:num_nodes]]
    at = [(start + (end - start) * t / 3).tolist() for t in range(4)]
    return graph(*(frame(dict(zip(names, map(tuple, p), strict=True)), float(t)) for t, p in enumerate(at)))


def probe(attack: Callable[[SceneGraph, np.random.Generator], SceneGraph], scenes: int = 300) -> GraphScore:
    """Mean scores of an attack over scenes of 2 to 5 moving objects."""
    scores = []
    for seed in range(scenes):
        truth = crossing(seed, 2 + seed % 4)
        scores.append(judge(attack(truth, np.random.default_rng(seed + 10_000)), truth))
    return GraphScore(
        graph=float(np.mean([s.graph for s in scores])),
        node=float(np.mean([s.node for s in scores])),
        edge=float(np.mean([s.edge for s in scores if s.edge is not None])),
        notes=(),
    )


def centroid(truth: SceneGraph, rng: np.random.Generator) -> SceneGraph:
    return replace(
        truth,
        frames=tuple(
            frame(
                dict.fromkeys((n.id for n in f.nodes), tuple(np.mean([n.pos for n in f.nodes], axis=0))), f.t
            )
            for f in truth.frames
        ),
    )


def copies(truth: SceneGraph, rng: np.random.Generator) -> SceneGraph:
    """As many copies of every label as 64 nodes allow."""
    each = 64 // len(truth.frames[0].nodes)
    return replace(
        truth,
        frames=tuple(
            frame(
                {f"{n.label}.{k}": tuple(rng.uniform(0, WIDTH, 2)) for n in f.nodes for k in range(each)}, f.t
            )
            for f in truth.frames
        ),
    )


def jitter(sigma: float) -> Callable[[SceneGraph, np.random.Generator], SceneGraph]:
    """Gaussian noise of `sigma` scene widths."""
    return lambda truth, rng: change(truth, lambda p: p + rng.normal(0, sigma * WIDTH, 2))


def test_truth_noise_and_shortcuts_earn_what_the_method_says() -> None:
    turned = probe(lambda truth, rng: change(truth, turn(90.0, "floor")))
    elsewhere = probe(lambda truth, rng: crossing(int(rng.integers(2**32)), len(truth.frames[0].nodes)))
    at_random = probe(lambda truth, rng: change(truth, lambda p: rng.uniform(0, WIDTH, 2)))
    assert probe(lambda truth, rng: truth).graph == 1.0
    assert probe(centroid).graph == pytest.approx(0.07, abs=0.02)
    assert probe(jitter(0.15)).graph == pytest.approx(0.43, abs=0.02)
    assert probe(jitter(0.05)).graph == pytest.approx(0.76, abs=0.02)
    assert turned.edge == pytest.approx(1.0)
    assert turned.graph == pytest.approx(0.52, abs=0.03)
    assert 0.1 < at_random.graph < 0.25
    assert at_random.graph < elsewhere.graph < 0.25


def test_copies_of_every_label_earn_little() -> None:
    assert probe(copies, scenes=8).graph < 0.05


def test_a_mirrored_truth_earns_less_than_a_turned_one() -> None:
    mirrored = probe(lambda truth, rng: change(truth, lambda p: np.array([WIDTH - p[0], p[1]])))
    turned = probe(lambda truth, rng: change(truth, turn(180.0, "floor")))
    assert mirrored.edge < 0.85 * turned.edge
