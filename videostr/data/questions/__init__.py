"""Clip -> questions: one module a theme, its families asked only where the clip supports it and the answer is beyond doubt.

In: a `ClipView` and a random generator. Out: `PreparedQuestion`: text, options, answer, and a key under which answers
are balanced (`videostr/data/balance.py`), so that the question alone tells nothing of the answer. Ambiguous cases are left out
by the thresholds of each theme: near ties, hidden objects, several objects that the words would fit.

    family                answer          needs
    counting              number          a label all of whose instances are annotated
    direction_camera      choice of 2     one frame; left/right in the image, nearer/farther in 3-D
    direction_object      choice of 4     3-D, three objects: standing at A, facing B, where is C
    distance_relative     choice of 3     3-D, four objects
    distance_absolute     number, choice  3-D, two objects
    order                 choice          objects that come into view one after the other
    size                  number          3-D
    displacement          number, choice  3-D, an object that moves
    path_length           number          3-D, an object that moves
    speed                 number, choice  3-D, an object that moves
    tracking              track           2-D boxes
    localisation_2d       box2d           2-D boxes
    localisation_3d       box3d           3-D, camera level
    presence              span            an object that comes or goes
    room_size             number          a source that tells it

Of marked objects (`marked.py`), whatever their labels: both directions (from an object with 2 to 4 options), distance_relative,
order, and

    motion_direction      choice          across the image; in 3-D also over the ground, towards another object, turns
    ahead, approach       choice of 2     3-D, two objects, of which one moves
    speed_change          choice of 2     3-D, an object that moves
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from videostr.data.clip_view import ClipView
from videostr.data.questions import counting, direction, distance, motion, order, place, size
from videostr.data.questions.question import PreparedQuestion, Rng

Family = Callable[[ClipView, Rng], PreparedQuestion | None]

TRIES = 3
"""Rounds over all families without a new question, after which a clip has no more."""

FAMILIES: dict[str, Family] = {
    "counting": counting.counting,
    "direction_camera": direction.direction_camera,
    "direction_object": direction.direction_object,
    "distance_relative": distance.distance_relative,
    "distance_absolute": distance.distance_absolute,
    "order": order.order,
    "size": size.size,
    "displacement": motion.displacement,
    "path_length": motion.path_length,
    "speed": motion.speed,
    "tracking": place.tracking,
    "localisation_2d": place.localisation_2d,
    "localisation_3d": place.localisation_3d,
    "presence": order.presence,
    "room_size": size.room_size,
}
"""Their order is part of what a seed means."""


def ask(view: ClipView, rng: Rng, limit: int, families: Sequence[str] = ()) -> list[PreparedQuestion]:
    """Return up to `limit` different questions about a clip, of these families (() is all) in turn."""
    found: dict[tuple[str, str], PreparedQuestion] = {}
    rounds_without_new = 0
    names = [name for name in families if name in FAMILIES] if families else list(FAMILIES)
    while len(found) < limit and rounds_without_new < TRIES:
        before = len(found)
        for name in rng.permutation(names):
            question = FAMILIES[str(name)](view, rng)
            if question is not None and len(found) < limit:
                found.setdefault((question.query.family, question.text), question)
        rounds_without_new = rounds_without_new + 1 if len(found) == before else 0
    return list(found.values())
