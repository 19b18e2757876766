"""Graph reward: golden values by hand, the invariances of method section 3, and what shortcuts earn."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from scipy.spatial.transform import Rotation

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


def test_the_edge_term_by_interior_angles() -> None:
    # Distances as above. Angles of the truth: 90, 53.13, 36.87 degrees; with b at (2, 0): 90, 63.435, 26.565.
    d = (1 - (1 / 3) / 0.5, 1 - (5 - math.sqrt(20)) / 5 / 0.5, 1.0)
    off = math.degrees(math.atan(4 / 2)) - math.degrees(math.atan(4 / 3))
    angles = (1.0, 1 - off / 60, 1 - off / 60)
    moved = graph(frame(TRIANGLE | {"b.1": (2.0, 0.0)}))
    expected = 0.5 * sum(d) / 3 + 0.5 * sum(angles) / 3
    assert judge(moved, graph(frame(TRIANGLE)), angle="interior").edge == pytest.approx(expected)
    # A fourth node: one true triple of four, three pairs of six.
    four = graph(frame(TRIANGLE | {"b.1": (2.0, 0.0), "x.1": (9.0, 9.0)}))
    expected = 0.5 * sum(d) / 6 + 0.5 * (sum(angles) / 3) / 4
    assert judge(four, graph(frame(TRIANGLE)), angle="interior").edge == pytest.approx(expected)


def test_interior_angles_need_three_nodes_of_a_frame() -> None:
    pair: Positions = {"a.1": (0.0, 0.0), "b.1": (4.0, 0.0)}
    truth = graph(frame(pair, 0.0), frame(TRIANGLE, 1.0))
    said = graph(frame(pair | {"b.1": (3.0, 0.0)}, 0.0), frame(TRIANGLE, 1.0))
    # First frame: distance 3 for 4, credit 0.5; second frame: 1.
    assert judge(said, truth, angle="interior").edge == pytest.approx(0.75)


@pytest.mark.parametrize("edges", ["stated_or_derived", "stated"])
def test_interior_angles_follow_from_stated_sides(edges: str) -> None:
    sides = (("a.1", "b.1", 3.0), ("b.1", "c.1", 5.0), ("c.1", "a.1", 4.0))
    said = tuple(Edge(a=a, b=b, dist=d, angle=None) for a, b, d in sides)
    scrambled = TRIANGLE | {"c.1": (9.0, 9.0)}
    assert judge(graph(frame(scrambled)), graph(frame(TRIANGLE)), angle="interior").edge < 0.6
    score = judge(graph(frame(scrambled, edges=said)), graph(frame(TRIANGLE)), angle="interior", edges=edges)
    assert score.edge == pytest.approx(1.0)
    two = judge(
        graph(frame(scrambled, edges=said[:2])), graph(frame(TRIANGLE)), angle="interior", edges="stated"
    )
    assert two.edge == pytest.approx(0.5 * 2 / 3)  # two distances of three, and a triangle needs three


def test_true_nodes_at_one_place_have_no_interior_angles_to_be_right_about() -> None:
    heap: Positions = dict.fromkeys(("a.1", "b.1", "c.1"), (1.0, 2.0)) | {"d.1": (4.0, 6.0)}
    truth = graph(frame(heap))
    sides = tuple(
        Edge(a=a, b=b, dist=math.dist(heap[a], heap[b]), angle=None)
        for a, b in itertools.combinations(heap, 2)
    )
    assert judge(truth, truth, angle="interior").edge == 1.0
    assert judge(graph(frame(heap, edges=sides)), truth, angle="interior", edges="stated").edge == 1.0
    # Without c: three of six distances, and of four triples the one that is stated.
    three = graph(frame({name: pos for name, pos in heap.items() if name != "c.1"}))
    assert judge(three, truth, angle="interior").edge == pytest.approx(0.5 * 3 / 6 + 0.5 * 1 / 4)
    # Where only stated sides count: one distance of six, and no triangle.
    one = graph(frame(heap, edges=sides[:1]))
    assert judge(one, truth, angle="interior", edges="stated").edge == pytest.approx(0.5 * 1 / 6)
    assert judge(truth, truth, angle="interior", edges="stated").edge == 0.0


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
    for angle in ("bearing", "interior"):
        rule = GraphRule(angle=angle)  # type: ignore[arg-type]
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


@pytest.mark.parametrize("angle", ["bearing", "interior"])
@pytest.mark.parametrize("reference", ["floor", "camera0", "image"])
def test_a_true_graph_without_nodes_is_right_when_stated(reference: str, angle: str) -> None:
    truth = graph(frame({}, 0.0), frame({}, 1.0), reference=reference)
    score = judge(truth, truth, angle=angle)
    assert (score.graph, score.node, score.edge) == (1.0, 1.0, None)
    for position in ((1.0, 2.0), (1.0, 2.0, 3.0)):
        invented = graph(frame({}, 0.0), frame({"a.1": position, "a.2": position}, 1.0))
        assert judge(invented, truth, angle=angle).graph == pytest.approx(0.5)


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


@given(seeds, labels, st.sampled_from([0.0, 0.5, 3.0]), st.sampled_from(["absolute", "relative"]))
@many
def test_edges_by_interior_angles_do_not_depend_on_any_rotation(
    seed: int, labels: str, sigma: float, scale: str
) -> None:
    truth = scene(seed, labels, "camera0")
    predicted = noisy(truth, seed + 1, sigma)
    rotation = Rotation.random(rng=np.random.default_rng(seed))
    turned = change(predicted, lambda p: rotation.apply(p) + np.array([3.0, -40.0, 7.0]))
    before, after = (judge(p, truth, angle="interior", scale=scale).edge for p in (predicted, turned))
    assert after == pytest.approx(before, abs=1e-9)
    if sigma == 0:
        assert after == pytest.approx(1.0, abs=1e-9)


@given(seeds, st.sampled_from(["abc", "abcd", "abcde"]))
@many
def test_interior_angles_do_not_tell_a_mirror_image(seed: int, labels: str) -> None:
    truth = scene(seed, labels, "camera0")
    mirrored = change(truth, lambda p: p * np.array([-1.0, 1.0, 1.0]))
    assert judge(mirrored, truth, angle="interior").edge == pytest.approx(1.0, abs=1e-9)


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
