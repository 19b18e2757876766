"""What comes into view first, and from when to when something is in view."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations

import numpy as np

from videostr.data.clip_view import ClipView
from videostr.data.naming import Name, is_unique, plain, query_about
from videostr.data.questions.question import PreparedQuestion, Rng, choice, worded
from videostr.types import Answer, AnswerKind


def order(view: ClipView, rng: Rng) -> PreparedQuestion | None:
    unique = {n: Name(plain(view.labels[n])) for n in range(len(view.tracks)) if is_unique(view, n)}
    return of_appearance(view, rng, unique, "the ")


def of_appearance(
    view: ClipView,
    rng: Rng,
    able: Mapping[int, Name],
    article: str = "",
    most: int = 3,
    first_only: bool = False,
) -> PreparedQuestion | None:
    """Return the order in which tracks come into view, or which of three or more is the first.

    Args:
        view: the clip.
        rng: of tracks, words and options.
        able: tracks that can be named, of which some are drawn.
        article: before each name in the question.
        most: how many tracks are asked about, if there are as many; two at least.
        first_only: ask for the first alone where there are more than two.
    """
    firsts = _first_seen(view)
    chosen: list[int] = []
    for n in rng.permutation([n for n in able if n in firsts]):
        if all(abs(firsts[int(n)] - firsts[m]) >= 2 for m in chosen):
            chosen.append(int(n))
    if len(chosen) < 2:
        return None
    chosen = sorted(chosen[:most], key=lambda n: firsts[n])
    names = {n: able[n] for n in sorted(chosen, key=lambda n: able[n].text)}
    if first_only and len(chosen) > 2:
        query = query_about(view, "order", names)
        text = worded(rng, FIRST, query, names=", ".join(f"{article}{name}" for name in query.names))
        options = {able[n].text: view.ids[n] for n in names}
        return choice(rng, text, query, able[chosen[0]].text, options, query.names)
    orders = {
        ", ".join(names[n].text for n in each): tuple(view.ids[n] for n in each)
        for each in permutations(chosen)
    }
    query = query_about(view, "order", names)
    text = worded(rng, ORDER, query, names=", ".join(f"{article}{name}" for name in query.names))
    truth = next(iter(orders))  # the first permutation is the order itself
    return choice(rng, text, query, truth, dict(sorted(orders.items())), query.names)


FIRST = (
    "Which of these comes into view first: {names}?",
    "Of {names}, which appears first?",
)
ORDER = (
    "In which order do these come into view for the first time: {names}?",
    "Which is the order of first appearance of {names}?",
    "Of {names}, which comes into view first, and what follows?",
)


def _first_seen(view: ClipView) -> dict[int, int]:
    """Return the selected frame that shows a track first, where that frame or the next shows it clearly."""
    firsts = {}
    for n, (shown, clear) in enumerate(zip(view.visibility > 0, view.clear, strict=True)):
        first = int(shown.argmax())
        if clear[first : first + 2].any():
            firsts[n] = first
    return firsts


def presence(view: ClipView, rng: Rng) -> PreparedQuestion | None:
    """Return the time from the first to the last selected frame that shows an object, which is in view without a break."""
    last = len(view.frames) - 1
    found = []
    for n, visible in enumerate(view.visibility):
        at = np.flatnonzero(visible > 0)
        whole = at[0] == 0 and at[-1] == last
        if (
            is_unique(view, n)
            and not whole
            and len(at) >= 2
            and (view.clear[n, at]).all()
            and at[-1] - at[0] == len(at) - 1
        ):
            found.append((n, view.times[at[0]], view.times[at[-1]]))
    if not found:
        return None
    n, start, end = found[int(rng.integers(len(found)))]
    query = query_about(view, "presence", {n: Name(f"the {plain(view.labels[n])}")}, times=view.times)
    text = worded(rng, PRESENCE, query, times=", ".join(f"{t:g}" for t in view.times))
    answer = Answer(kind=AnswerKind.SPAN, value=(start, end), unit="s")
    return PreparedQuestion(query=query, text=text, answer=answer)


PRESENCE = (
    "The frames are from {times} s. From when to when is {a} in view? Give the times of the first and the last frame with it.",
    "Of the frames at {times} s, which are the first and the last to show {a}?",
)
