"""Scene -> records: six question families with exact answers, and the true scene graph at the selected times.

Counting and displacement give numbers; relative direction, relative distance and order of appearance give choices;
localisation gives an image box. Ambiguous questions (near ties, a label with several instances) are not asked.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np

from videostr.graph import view_of
from videostr.query import DECIMALS, LENGTH_UNITS
from videostr.tabletop.render import box2d
from videostr.tabletop.world import COLORS, SHAPES, Difficulty, Scene, Solid
from videostr.types import Answer, AnswerKind, ClipSpec, GraphFrame, Node, Query, Record, SceneGraph

DISTRACTORS = 2
TIE = 0.2
"""Two distances or coordinates closer than this share of the floor's quarter are not compared."""


def make_records(scene: Scene, video: str, name: str, limit: int) -> list[Record]:
    """Up to `limit` records about a scene, of different families, chosen by the scene's seed."""
    rng = np.random.default_rng([scene.seed, 1])
    labels = _labels(scene, rng)
    graph = true_graph(scene)
    records: list[Record] = []
    for family in rng.permutation(list(FAMILIES)):
        question = FAMILIES[str(family)](scene, rng)
        if question is None or len(records) == limit:
            continue
        query, answer = question
        records.append(
            Record(
                id=f"{name}/{family}",
                source=f"tabletop/{scene.difficulty}",
                family=str(family),
                question=TEXTS[query.family].format(**_words(query), unit=answer.unit),
                options=tuple(_option_text(query, option) for option in query.options),
                answer=answer,
                clip=ClipSpec(video=video, num_frames=scene.num_frames),
                labels=labels,
                graph=graph,
                query=query,
            )
        )
    return records


TEXTS = {
    "counting": "How many objects are on the floor at {t:g} s?",
    "displacement": "How far, in {unit}, does the {a} move in a straight line from {t:g} s to {end:g} s?",
    "direction": "At {t:g} s, where is the {a} as seen by the camera?",
    "distance": "At {t:g} s, what is closer to the {a}?",
    "order": "Which of the two appears first?",
    "localisation": "Where in the image is the {a} at {t:g} s?",
}
DIRECTIONS = {
    "left": "to the left of",
    "right": "to the right of",
    "nearer": "in front of",
    "farther": "behind",
}
"""The shipped policy was trained on these words and texts."""


def _words(query: Query) -> dict[str, object]:
    times, names = (query.times or (0.0,)), (query.names or ("",))
    return {"t": times[0], "end": times[-1], "a": names[0]}


def _option_text(query: Query, option: object) -> str:
    if option in query.objects:
        return query.names[query.objects.index(str(option))]
    return f"{DIRECTIONS[str(option)]} the {query.names[1]}"


def true_graph(scene: Scene) -> SceneGraph:
    """Return cells on the floor for `easy`, metres in `camera0` for `full`; solids in view at each selected time."""
    easy = scene.difficulty is Difficulty.EASY
    frames = []
    for t in scene.times():
        nodes = []
        for name, solid in sorted(_ids(scene), key=lambda pair: pair[0]):
            if not _in_view(scene, solid, t):
                continue
            pos = _place(scene, solid, t)
            nodes.append(Node(id=name, label=solid.label, pos=pos, size=(2 * solid.radius,) * len(pos)))
        frames.append(GraphFrame(t=t, nodes=tuple(nodes), view=None if easy else scene.camera.view(t)))
    return SceneGraph(unit=scene.unit, frame="floor" if easy else "camera0", frames=tuple(frames))


def _ids(scene: Scene) -> Iterator[tuple[str, Solid]]:
    """Yield every solid with the id of its node."""
    numbers: Counter[str] = Counter()
    for solid in scene.solids:
        numbers[solid.label] += 1
        yield f"{solid.label}.{numbers[solid.label]}", solid


def _place(scene: Scene, solid: Solid, t: float) -> tuple[float, ...]:
    """Return the position of a solid as the graph states it."""
    point = solid.position(t)
    pos = point[:2] if scene.difficulty is Difficulty.EASY else scene.camera.to_camera(point, 0.0)
    return tuple(round(float(p), 3) for p in pos)


Question = tuple[Query, Answer] | None


def _counting(scene: Scene, rng: np.random.Generator) -> Question:
    t = _time(scene, rng)
    count = sum(_in_view(scene, solid, t) for solid in scene.solids)
    return Query(family="counting", times=(t,)), Answer(kind=AnswerKind.NUMBER, value=float(count))


def _displacement(scene: Scene, rng: np.random.Generator) -> Question:
    solid = _pick(scene, rng, lambda s: s.velocity != (0.0, 0.0) and s.appears_s == 0)
    times = (0.0, scene.duration_s)
    if solid is None or not all(_in_view(scene, solid, t) for t in times):
        return None
    start, end = (_place(scene, solid, t) for t in times)
    unit = LENGTH_UNITS[scene.unit]
    answer = Answer(kind=AnswerKind.NUMBER, value=round(math.dist(start, end), DECIMALS), unit=unit)
    return _query_about("displacement", solid, times=times), answer


def _direction(scene: Scene, rng: np.random.Generator) -> Question:
    t = _time(scene, rng)
    pair = _pair(scene, rng, t)
    if pair is None:
        return None
    a, b = pair
    axis = int(rng.integers(2))
    words = (("left", "right"), ("nearer", "farther"))[axis]
    a_pos, b_pos = (_viewed(scene, solid, t)[axis] for solid in (a, b))
    if abs(a_pos - b_pos) < TIE * scene.floor / 2:
        return None
    options, answer = _choice(*(words if a_pos < b_pos else words[::-1]), rng)
    query = _query_about(
        "direction",
        a,
        b,
        times=(t,),
        axis=("right", "depth")[axis],
        options=options,
        camera=_camera(scene, t),
    )
    return query, answer


def _distance(scene: Scene, rng: np.random.Generator) -> Question:
    t = _time(scene, rng)
    unique = [solid for solid in _unique(scene) if _in_view(scene, solid, t)]
    if len(unique) < 3:
        return None
    target, a, b = (unique[i] for i in rng.permutation(len(unique))[:3])
    near, far = sorted((a, b), key=lambda s: float(np.linalg.norm(s.position(t) - target.position(t))))
    gap = np.linalg.norm(far.position(t) - target.position(t)) - np.linalg.norm(
        near.position(t) - target.position(t)
    )
    if gap < TIE * scene.floor / 2:
        return None
    options, answer = _choice(_id(near), _id(far), rng)
    return _query_about("distance", target, a, b, times=(t,), axis="nearest", options=options), answer


def _order(scene: Scene, rng: np.random.Generator) -> Question:
    unique = [solid for solid in _unique(scene) if _in_view(scene, solid, scene.duration_s)]
    late = [solid for solid in unique if solid.appears_s > 0]
    early = [solid for solid in unique if solid.appears_s == 0]
    if not late or not early:
        return None
    second = late[int(rng.integers(len(late)))]
    first = early[int(rng.integers(len(early)))]
    if not _in_view(scene, first, 0.0):
        return None
    options, answer = _choice(_id(first), _id(second), rng)
    return _query_about("order", first, second, options=options), answer


def _localisation(scene: Scene, rng: np.random.Generator) -> Question:
    t = _time(scene, rng)
    solid = _pick(scene, rng, lambda s: _in_view(scene, s, t))
    box = box2d(scene, solid, t) if solid else None
    if solid is None or box is None:
        return None
    value = tuple(float(round(v, -1)) for v in box)
    return _query_about("localisation", solid, times=(t,)), Answer(
        kind=AnswerKind.BOX2D, value=value, unit="px"
    )


FAMILIES: dict[str, Callable[[Scene, np.random.Generator], Question]] = {
    "counting": _counting,
    "displacement": _displacement,
    "direction": _direction,
    "distance": _distance,
    "order": _order,
    "localisation": _localisation,
}


def _id(solid: Solid) -> str:
    """Return the id of a solid that is the only one of its label."""
    return f"{solid.label}.1"


def _query_about(
    family: str,
    *solids: Solid,
    times: tuple[float, ...] = (),
    axis: str = "",
    options: tuple[str, ...] = (),
    camera: tuple[float, ...] | None = None,
) -> Query:
    """Return the query about solids that are the only ones of their labels."""
    return Query(
        family=family,
        objects=tuple(map(_id, solids)),
        names=tuple(solid.label for solid in solids),
        times=times,
        axis=axis,
        options=options,
        camera=camera,
    )


def _camera(scene: Scene, t: float) -> tuple[float, ...] | None:
    """Return `Query.camera`; None where the graph's axes are those of the view from above."""
    if scene.difficulty is Difficulty.EASY:
        return None
    turned = scene.camera.rotation(t) @ scene.camera.rotation(0.0).T
    return view_of(np.column_stack([turned, np.zeros(3)]))


def _choice(truth: str, other: str, rng: np.random.Generator) -> tuple[tuple[str, ...], Answer]:
    first = bool(rng.integers(2))
    options = (truth, other) if first else (other, truth)
    return options, Answer(kind=AnswerKind.CHOICE, value="A" if first else "B")


def _labels(scene: Scene, rng: np.random.Generator) -> tuple[str, ...]:
    """Return labels of the scene and some that it does not have, sorted so that order tells nothing."""
    shapes = ("ball",) if scene.difficulty is Difficulty.EASY else SHAPES
    present = {solid.label for solid in scene.solids}
    absent = sorted({f"{color}_{shape}" for color in COLORS for shape in shapes} - present)
    return tuple(sorted(present | set(map(str, rng.permutation(absent)[:DISTRACTORS]))))


def _time(scene: Scene, rng: np.random.Generator) -> float:
    return float(rng.choice(scene.times()))


def _unique(scene: Scene) -> list[Solid]:
    counts = Counter(solid.label for solid in scene.solids)
    return [solid for solid in scene.solids if counts[solid.label] == 1]


def _pick(scene: Scene, rng: np.random.Generator, holds: Callable[[Solid], bool]) -> Solid | None:
    found = [solid for solid in _unique(scene) if holds(solid)]
    return found[int(rng.integers(len(found)))] if found else None


def _pair(scene: Scene, rng: np.random.Generator, t: float) -> tuple[Solid, Solid] | None:
    found = [solid for solid in _unique(scene) if _in_view(scene, solid, t)]
    if len(found) < 2:
        return None
    a, b = rng.permutation(len(found))[:2]
    return found[a], found[b]


def _viewed(scene: Scene, solid: Solid, t: float) -> tuple[float, float]:
    """Return (to the right, away) of the camera at time `t`; for the view from above, x and y of the floor."""
    if scene.difficulty is Difficulty.EASY:
        x, y, _ = solid.position(t)
        return float(x), float(y)
    right, _, forward = scene.camera.to_camera(solid.position(t), t)
    return float(right), float(forward)


def _in_view(scene: Scene, solid: Solid, t: float) -> bool:
    if not solid.visible(t):
        return False
    p = scene.camera.to_camera(solid.position(t), t)
    return bool(p[2] > 0 and np.abs(scene.camera.focal * p[:2] / p[2]).max() <= 0.5)
