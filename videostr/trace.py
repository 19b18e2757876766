"""Traces: what a policy wrote, taken apart.

In: the text of a completion. Out: `Trace`, always; what is wrong with the text stands in it as words. The format
(method, section 1) is `<think> text <graph>{JSON}</graph> text </think> <answer> text </answer>`, with white space
around the two blocks and nothing else; the graph may be left out.
"""

from __future__ import annotations

import re

from videostr import graph as graphs
from videostr.types import GraphAbsence, SceneGraph, Trace

_OPENED = re.compile(r"<think>\s*\Z")
_TAG = re.compile(r"</?(?:think|graph|answer)>")
_PLAIN = ["<think>", "</think>", "<answer>", "</answer>"]
_WITH_GRAPH = ["<think>", "<graph>", "</graph>", "</think>", "<answer>", "</answer>"]


def parse(text: str) -> Trace:
    """Take a completion's text apart, in time linear in its length.

    Never raises. Text outside the format gives `well_formed = False` and still yields what can be found: the first
    think block, in it the last graph, and the last answer block; a block that is never closed runs to the next one
    or to the end. Beyond 64 KiB nothing is read.
    """
    # The length check comes first so that encoding is bounded too.
    if len(text) > graphs.MAX_BYTES or graphs.size_in_bytes(text) > graphs.MAX_BYTES:
        problem = f"the text has {len(text)} characters, more than {graphs.MAX_BYTES // 1024} KiB"
        return Trace(
            think="", graph=GraphAbsence.TOO_LARGE, answer="", well_formed=False, problems=(problem,)
        )
    tags = [(match.group(), match.start(), match.end()) for match in _TAG.finditer(text)]
    problems = _format_problems(text, tags)
    well_formed = not problems
    think = _think_span(text, tags)
    graph, graph_problems = _graph(text, [tag for tag in tags if think[0] <= tag[1] < think[1]])
    return Trace(
        think=text[think[0] : think[1]],
        graph=graph,
        answer=_answer(text, tags),
        well_formed=well_formed,
        problems=(*problems, *graph_problems),
    )


def opened(prompt: str) -> str:
    """Return the beginning of a trace that a chat text ends with: `<think>` and white space after it; "" for none.

    The templates of models that always reason open the think block themselves. `Completion.text` begins with what they wrote.
    """
    found = _OPENED.search(prompt)
    return found.group() if found else ""


def rest_of(trace: str, prompt: str) -> str:
    """Return what is left to write of a trace after a chat text, which may have opened it; a model is taught this."""
    begun = opened(prompt)
    return trace.removeprefix("<think>").lstrip() if begun else trace


def without_thinking(text: str, prompt: str) -> str:
    """Return the part of a completion's text after its think block, where the chat text opened one; else the whole text."""
    if not opened(prompt):
        return text
    _, closed, after = text.rpartition("</think>")
    return after if closed else ""


_Tags = list[tuple[str, int, int]]


def _format_problems(text: str, tags: _Tags) -> list[str]:
    names = [name for name, _, _ in tags]
    if names in (_PLAIN, _WITH_GRAPH):
        outside = text[: tags[0][1]] + text[tags[-3][2] : tags[-2][1]] + text[tags[-1][2] :]
        return ["there is text outside <think> and <answer>"] if outside.strip() else []
    problems = []
    for block, least in (("think", 1), ("answer", 1), ("graph", 0)):
        opened, closed = names.count(f"<{block}>"), names.count(f"</{block}>")
        if opened > 1 or closed > 1:
            problems.append(f"more than one <{block}> block")
        elif opened < closed:
            problems.append(f"</{block}> without <{block}>")
        elif opened > closed:
            problems.append(f"<{block}> is never closed")
        elif opened < least:
            problems.append(f"no <{block}> block")
    return problems or ["the blocks must be <think>, in it at most one <graph>, then <answer>"]


def _think_span(text: str, tags: _Tags) -> tuple[int, int]:
    start = next((end for name, _, end in tags if name == "<think>"), None)
    if start is None:
        return 0, 0
    stops = (at for name, at, _ in tags if at >= start and name in ("</think>", "<answer>"))
    return start, next(stops, len(text))


def _graph(text: str, tags: _Tags) -> tuple[SceneGraph | GraphAbsence, list[str]]:
    start = next((end for name, _, end in reversed(tags) if name == "<graph>"), None)
    if start is None:
        return GraphAbsence.ABSENT, []
    stop = next((at for name, at, _ in tags if at >= start and name == "</graph>"), None)
    if stop is None:
        return GraphAbsence.BAD_JSON, ["graph: <graph> is never closed"]
    try:
        return graphs.from_json(text[start:stop]), []
    except graphs.InvalidGraph as refused:
        return refused.reason, [f"graph: {refused}"]


def _answer(text: str, tags: _Tags) -> str:
    start = next((end for name, _, end in reversed(tags) if name == "<answer>"), None)
    if start is None:
        return ""
    stop = next((at for _, at, _ in tags if at >= start), len(text))
    return text[start:stop].strip()
