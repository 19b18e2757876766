"""Scene -> records: six question families with exact answers, and the true scene graph at the selected times.

Counting and displacement give numbers; relative direction, relative distance and order of appearance give choices;
localisation gives an image box. Ambiguous questions (near ties, a label with several instances) are not asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np

from videostr.tabletop.render import box2d
from videostr.tabletop.world import COLORS, SHAPES, Difficulty, Scene, Solid
from videostr.types import Answer, AnswerKind, ClipSpec, GraphFrame, Node, Record, SceneGraph

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
        asked = FAMILIES[str(family)](scene, rng)
        if asked is None or len(records) == limit:
            continue
        question, options, answer = asked
        records.append(
            Record(
                id=f"{name}/{family}",
                source=f"tabletop/{scene.difficulty}",
                family=str(family),
                question=question,
                options=options,
                answer=answer,
                clip=ClipSpec(video=video, num_frames=scene.num_frames),
                labels=labels,
                graph=graph,
            )
        )
    return records


def true_graph(scene: Scene) -> SceneGraph:
    """Return cells on the floor for `easy`, metres in `camera0` for `full`; solids in view at each selected time."""
    easy = scene.difficulty is Difficulty.EASY
    numbers: Counter[str] = Counter()
    ids: list[str] = []
    for solid in scene.solids:
        numbers[solid.label] += 1
        ids.append(f"{solid.label}.{numbers[solid.label]}")
    frames = []
    for t in scene.times():
        nodes = []
        for name, solid in sorted(zip(ids, scene.solids, strict=True), key=lambda pair: pair[0]):
            if not _in_view(scene, solid, t):
                continue
            point = solid.position(t)
            pos = point[:2] if easy else scene.camera.to_camera(point, 0.0)
            extent = (2 * solid.radius,) * len(pos)
            nodes.append(
                Node(id=name, label=solid.label, pos=tuple(round(float(p), 3) for p in pos), size=extent)
            )
        frames.append(GraphFrame(t=t, nodes=tuple(nodes), view=None if easy else scene.camera.view(t)))
    return SceneGraph(unit=scene.unit, frame="floor" if easy else "camera0", frames=tuple(frames))


Asked = tuple[str, tuple[str, ...], Answer] | None


def _counting(scene: Scene, rng: np.random.Generator) -> Asked:
    t = _time(scene, rng)
    count = sum(_in_view(scene, solid, t) for solid in scene.solids)
    return (
        f"How many objects are on the floor at {t:g} s?",
        (),
        Answer(kind=AnswerKind.NUMBER, value=float(count)),
    )


def _displacement(scene: Scene, rng: np.random.Generator) -> Asked:
    solid = _pick(scene, rng, lambda s: s.velocity != (0.0, 0.0) and s.appears_s == 0)
    if solid is None:
        return None
    end = scene.duration_s
    moved = float(np.linalg.norm(solid.position(end) - solid.position(0.0)))
    unit = "cells" if scene.unit == "grid" else "m"
    text = f"How far, in {unit}, does the {solid.label} move in a straight line from 0 s to {end:g} s?"
    return text, (), Answer(kind=AnswerKind.NUMBER, value=round(moved, 1), unit=unit)


def _direction(scene: Scene, rng: np.random.Generator) -> Asked:
    t = _time(scene, rng)
    pair = _pair(scene, rng, t)
    if pair is None:
        return None
    a, b = pair
    axis = int(rng.integers(2))
    words = (("to the left of", "to the right of"), ("in front of", "behind"))[axis]
    a_pos, b_pos = (_viewed(scene, solid, t)[axis] for solid in (a, b))
    if abs(a_pos - b_pos) < TIE * scene.floor / 2:
        return None
    text = f"At {t:g} s, where is the {a.label} as seen by the camera?"
    truth, other = (f"{word} the {b.label}" for word in (words if a_pos < b_pos else words[::-1]))
    return text, *_choice(truth, other, rng)


def _distance(scene: Scene, rng: np.random.Generator) -> Asked:
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
    return f"At {t:g} s, what is closer to the {target.label}?", *_choice(near.label, far.label, rng)


def _order(scene: Scene, rng: np.random.Generator) -> Asked:
    unique = [solid for solid in _unique(scene) if _in_view(scene, solid, scene.duration_s)]
    late = [solid for solid in unique if solid.appears_s > 0]
    early = [solid for solid in unique if solid.appears_s == 0]
    if not late or not early:
        return None
    second = late[int(rng.integers(len(late)))]
    first = early[int(rng.integers(len(early)))]
    return "Which of the two appears first?", *_choice(first.label, second.label, rng)


def _localisation(scene: Scene, rng: np.random.Generator) -> Asked:
    t = _time(scene, rng)
    solid = _pick(scene, rng, lambda s: _in_view(scene, s, t))
    box = box2d(scene, solid, t) if solid else None
    if solid is None or box is None:
        return None
    text = f"Where in the image is the {solid.label} at {t:g} s?"
    return text, (), Answer(kind=AnswerKind.BOX2D, value=tuple(float(round(v, -1)) for v in box), unit="px")


FAMILIES: dict[str, Callable[[Scene, np.random.Generator], Asked]] = {
    "counting": _counting,
    "displacement": _displacement,
    "direction": _direction,
    "distance": _distance,
    "order": _order,
    "localisation": _localisation,
}


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
