"""Clips of a scene made by hand: what is in view, the ego motion compensated, the true graph."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.videostr.data.hand import scene, track
from videostr.data.clip_view import MAX_NODES, ClipView
from videostr.data.clips import clips


def test_ego_motion_is_taken_out_of_positions() -> None:
    # Parked at x = 2, z = 20 of the world. The camera of the clip's first frame, number 1, stands at z = 1 and looks along
    # z turned by 0.1 rad to the right: x0 = 2 cos 0.1 - 19 sin 0.1, z0 = 2 sin 0.1 + 19 cos 0.1, at every time.
    parked = track("a", "car", [(2.0, 1.0, 20.0)] * 5)
    view = ClipView(scene([parked], turn=0.1), 0, (1, 2, 4))
    expected = [2 * np.cos(0.1) - 19 * np.sin(0.1), 1.0, 2 * np.sin(0.1) + 19 * np.cos(0.1)]
    np.testing.assert_allclose(view.positions[0], [expected] * 3, atol=0.005)  # rounded as in the graph
    # As the camera of frame 4 sees it: turned by 0.4, from z = 4.
    np.testing.assert_allclose(
        view.in_camera[2, 0],
        [2 * np.cos(0.4) - 16 * np.sin(0.4), 1.0, 2 * np.sin(0.4) + 16 * np.cos(0.4)],
        atol=1e-12,
    )


def test_the_graph_holds_what_is_seen_at_each_time() -> None:
    near = track("a", "car", [(2.0, 1.0, 20.0)] * 5)
    hidden = track("b", "car", [(0.0, 1.0, 25.0)] * 5, visibility=np.array([1, 1, 0.1, 0.1, 1.0]))
    far = track("c", "van", [(0.0, 1.0, 65.0)] * 5)  # beyond 60 m until the camera has driven 5 m
    late = track("d", "tram", [(1.0, 1.0, 30.0)], frames=[4])
    view = ClipView(scene([near, hidden, far, late], drive=2.0), 0, (0, 2, 4))
    graph = view.graph(frozenset({"car", "van", "tram"}))
    assert (graph.unit, graph.frame) == ("m", "camera0")
    assert [frame.t for frame in graph.frames] == [0.0, 1.0, 2.0]
    assert [[node.id for node in frame.nodes] for frame in graph.frames] == [
        ["car.1", "car.2"],
        ["car.1"],
        ["car.1", "car.2", "van.1", "tram.1"],
    ]
    assert graph.frames[0].nodes[0].pos == (2.0, 1.0, 20.0)
    # Yaw 0: the length of 4 m lies along x, the height of 1.5 m along y, the width of 2 m along z.
    assert graph.frames[0].nodes[0].size == (4.0, 1.5, 2.0)
    assert [node.label for frame in view.graph(frozenset({"van"})).frames for node in frame.nodes] == ["van"]


def test_the_view_takes_positions_of_the_graph_to_the_frame_of_their_time() -> None:
    # Focal length 500 px in an image of 1000 x 500: in the first frame x = 0 + 500 x / z, y = (0 + 500 y / z) * 2.
    parked = track("a", "car", [(2.0, 1.0, 20.0)] * 5)
    clip = ClipView(scene([parked], turn=0.1), 0, (0, 2, 4))
    places = []
    for frame in clip.graph(frozenset({"car"})).frames:
        x, y, depth = np.reshape(frame.view or (), (3, 4)) @ (*frame.nodes[0].pos, 1)
        places.append((x / depth, y / depth))
    np.testing.assert_allclose(places[0], (50.0, 50.0))
    seen = [clip.in_camera[f, 0] for f in range(3)]  # the pose of each frame, without the graph
    expected = [(500 * x / z, 1000 * y / z) for x, y, z in seen]
    np.testing.assert_allclose(places, expected, atol=0.6)  # positions have 2 decimals
    blind = ClipView(replace(scene([parked]), projection=None), 0, (0, 2, 4))
    assert [frame.view for frame in blind.graph(frozenset({"car"})).frames] == [None] * 3


def test_the_extent_turns_with_the_box() -> None:
    # A quarter turn: length along z. An eighth: (4 + 2) / sqrt 2 along x and z.
    turned = track("a", "car", [(2.0, 1.0, 20.0)] * 2, yaws=np.array([np.pi / 2, np.pi / 4]))
    frames = ClipView(scene([turned], frames=2, drive=0), 0, (0, 1)).graph(frozenset({"car"})).frames
    assert frames[0].nodes[0].size == (2.0, 1.5, 4.0)
    assert frames[1].nodes[0].size == pytest.approx((4.24, 1.5, 4.24))


def test_without_3d_the_graph_is_in_the_image() -> None:
    boxes = np.array([[100.0, 100.0, 200.0, 150.0]])
    flat = track("a", "dog", [(0.0, 0.0, 0.0)], centers=None, sizes=None, yaws=None, boxes=boxes)
    whole = replace(scene([flat], frames=1), up=None, projection=None)
    graph = ClipView(whole, 0, (0,)).graph(frozenset({"dog"}))
    # Of 1000 x 500 px: the centre (150, 125) lies at 150 and 250 thousandths, the box is 100 by 100 of them.
    assert (graph.unit, graph.frame) == ("px", "image")
    assert (graph.frames[0].nodes[0].pos, graph.frames[0].nodes[0].size) == ((150.0, 250.0), (100.0, 100.0))


def test_labels_are_left_out_to_keep_a_graph_small() -> None:
    crowd = [track(f"p{i}", "pedestrian", [(0.0, 1.0, 10.0 + i)] * 2) for i in range(MAX_NODES - 1)]
    cars = [track(f"c{i}", "car", [(3.0, 1.0, 10.0 + i)] * 2) for i in range(2)]
    tram = [track("t", "tram", [(3.0, 1.0, 10.0)] * 2)]
    view = ClipView(scene([*crowd, *cars, *tram], frames=2), 0, (0, 1))
    rng = np.random.default_rng(0)
    assert view.graph_labels(frozenset({"pedestrian"}), rng) == {"pedestrian", "tram"}
    assert view.graph_labels(frozenset({"pedestrian", "car"}), rng) is None
    assert view.graph_labels(frozenset({"car"}), rng) == {"car", "tram"}


def test_clips_are_equally_spaced_and_never_span_a_gap() -> None:
    car = track("a", "car", [(0.0, 1.0, 20.0)] * 60)
    whole = scene([car], frames=60, step=0.1, drive=0.1)
    kept = tuple(frame for frame in whole.frames if not 2.0 < frame.t < 3.5)
    shorter = track("a", "car", [(0.0, 1.0, 20.0)] * len(kept))
    gap = replace(whole, frames=kept, tracks=(shorter,))
    for given, some_span in ((whole, True), (gap, False)):
        found = list(clips(given, count=200, num_frames=4, rng=np.random.default_rng(0)))
        assert found
        assert [view.number for view in found] == list(range(len(found)))
        for view in found:
            gaps = np.diff(view.times)
            assert np.ptp(gaps) <= 0.5 * gaps.mean()
        assert any(view.times[0] < 2.5 < view.times[-1] for view in found) == some_span


def test_a_room_is_a_clip_of_the_whole_and_then_clips_of_parts() -> None:
    chair = track("a", "chair", [(0.0, 0.0, 2.0)] * 10, is_static=True)
    room = scene([chair], frames=10)  # 4.5 s, a frame each 0.5 s
    found = list(clips(room, count=5, num_frames=4, rng=np.random.default_rng(0)))
    assert found[0].frames == (0, 3, 6, 9)
    # 1 s apart; 2 s and 4 s are too long.
    parts = [view.frames for view in found[1:]]
    assert parts
    assert len(set(parts)) == len(parts)
    assert set(parts) <= {(start, start + 2, start + 4, start + 6) for start in range(4)}
    assert [view.is_whole for view in found] == [True, *[False] * len(parts)]
    assert [view.number for view in found] == list(range(len(found)))
    (view,) = clips(room, count=1, num_frames=4, rng=np.random.default_rng(0))
    assert view.frames == (0, 3, 6, 9)


def test_a_track_without_2d_boxes_among_others_that_have_some() -> None:
    boxed = track("a", "car", [(2.0, 1.0, 20.0)] * 2)
    bare = track("b", "car", [(4.0, 1.0, 20.0)] * 2, boxes=None)
    view = ClipView(scene([boxed, bare], frames=2), 0, (0, 1))
    assert np.isnan(view.boxes[1]).all()
    assert view.large.tolist() == [[True, True], [False, False]]
