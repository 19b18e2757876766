"""Record -> what the policy is asked: chat text with one video placeholder.

`render` writes the text, for which no pixels are needed; the model's family (`videostr.models`) makes tensors of text and frames.
`reference_trace` is the answer that a perfect policy would give.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from videostr import graph as graphs
from videostr.chat import LIKELY, chat_text, found_in
from videostr.errors import PromptError
from videostr.options import letter_of, lettered, text_of
from videostr.reasoning import reasoning
from videostr.types import Answer, AnswerKind, Clip, ClipSpec, GraphFrame, Node, Prompt, Record, SceneGraph

AXES = {
    "floor": "x to the right, y away from the camera, on the floor",
    "camera0": "x right, y down, z forward, seen from the camera at the first time",
    "image": "x right, y down, in the image",
}
ANSWER_FORMATS = {
    AnswerKind.CHOICE: "the letter of the right option",
    AnswerKind.NUMBER: "a number",
    AnswerKind.BOX2D: "a box [x1,y1,x2,y2] in px, 0 to 1000 of the image's width and height",
    AnswerKind.BOX3D: "a box [x,y,z,dx,dy,dz,yaw] in m and rad",
    AnswerKind.SPAN: "a span [start,end] in s",
    AnswerKind.TRACK: "a list of boxes [x1,y1,x2,y2] in px, 0 to 1000 of the image's width and height",
}


def render(record: Record, clip: Clip, processor: Any) -> Prompt:
    """Return the prompt of a record.

    Raises:
        PromptError: the text cannot be made a prompt, or a label holds a special token.
    """
    return Prompt(record_id=record.id, text=prompt_text(record, processor), clip=clip)


def prompt_text(record: Record, processor: Any) -> str:
    """Return the chat text of a record, with the processor's chat template; ends where the completion begins.

    Raises:
        PromptError: as `render`.
    """
    for where, token in special_in(record, processor):
        if where.startswith("label"):  # escaped, it would not be the label of the true graph
            raise PromptError(
                f"{where} holds {token}, a special token of the tokenizer, which no trace can hold",
                remedy="rename the label",
            )
    return chat_text(instruction(record), processor)


def special_in(record: Record, processor: Any = None) -> list[tuple[str, str]]:
    """Return where the text of a record holds special tokens, and which.

    Args:
        record: whose question, options, labels and unit are searched.
        processor: whose tokens; None for those of common tokenizers.
    """
    texts = {
        "question": record.question,
        **{f"option {letter_of(i)}": option for i, option in enumerate(record.options)},
        "unit": record.answer.unit,
        **{f"label {label!r}": label for label in record.labels},
    }
    return [
        (where, token)
        for where, text in texts.items()
        for token in (LIKELY.findall(text) if processor is None else found_in(text, processor))
    ]


def instruction(record: Record) -> str:
    """Return the instruction for the policy: the question, the graph's contract for this scene, the form of the answer.

    Times are those of the whole video. The contract names those of the frames; without one, `part_shown` does.
    """
    contract = ""
    question = format_question(record.question, record.options)
    if record.graph is not None:
        times = [frame.t for frame in record.graph.frames]
        contract = graph_contract(record.graph, times, f"Labels: {', '.join(record.labels)}.")
    else:
        question = part_shown(record.clip) + question
    return reasoning_prompt(question, contract, answer_format(record.answer))


def part_shown(clip: ClipSpec) -> str:
    """Return a line on which part of the video is shown; "" where its beginning is.

    Some models see any clip as beginning at 0 s. Prompts of others have the times of its frames in the video, which agree.
    """
    if not clip.start_s:
        return ""
    end = "on" if clip.end_s is None else f"to {clip.end_s:g} s"
    return f"The video is shown from {clip.start_s:g} s {end}; times count from its beginning, which is not shown.\n"


def format_question(question: str, options: Sequence[str]) -> str:
    """Return a question with its options under letters."""
    return "\n".join([question, *lettered(options)])


def answer_format(answer: Answer) -> str:
    """Return what an answer has to be, in words."""
    unit = f" in {answer.unit}" if answer.kind is AnswerKind.NUMBER and answer.unit else ""
    return f"{ANSWER_FORMATS[answer.kind]}{unit}"


def reasoning_prompt(question: str, contract: str, form: str) -> str:
    """Return the instruction to reason first; with a graph where there is a `graph_contract`."""
    think = contract or "Reason inside <think></think>."
    return f"{question}\n{think}\nThen write {form} inside <answer></answer>."


def graph_contract(graph: SceneGraph, times: Sequence[float], labels: str) -> str:
    """Return how to draw a scene: unit, frame of reference and dimensions as in `graph`, at these times, with these labels.

    Without times, which are not always known, it asks for some of those shown.
    """
    when = f"{', '.join(f'{t:g}' for t in times)} s" if times else "up to four of those shown, in s"
    return "\n".join(
        [
            "Inside <think></think>, draw the scene as JSON inside <graph></graph>, then reason.",
            f"Unit: {graph.unit}. Positions: {AXES[graph.frame]}. Times: {when}. {labels}",
            "Edges (dist; angle of a to b in degrees, 0 right, 90 away) may be left out.",
            f"Example of another scene: {_example(graph)}",
        ]
    )


def reference_trace(
    record: Record, *, ends_only: bool = False, reasoned: bool = False, option_text: bool = False
) -> str:
    """Return the trace that scores 1 everywhere: the true graph and the true answer.

    Args:
        record: what is asked.
        ends_only: state only the first and the last selected time, which scores less.
        reasoned: say after the graph why the answer follows from it, where it does.
        option_text: answer a choice by the text of the option instead of its letter.
    """
    graph = record.graph
    if graph is not None and ends_only and len(graph.frames) > 2:
        graph = replace(graph, frames=(graph.frames[0], graph.frames[-1]))
    block = "" if graph is None else f"<graph>{graphs.to_json(graph)}</graph>"
    reasons = reasoning(record, graph) if reasoned and graph is not None else ""
    answer = answer_text(record.answer)
    if option_text and record.answer.kind is AnswerKind.CHOICE:
        answer = text_of(record.options, answer)
    return f"<think>{block}{reasons}</think><answer>{answer}</answer>"


def answer_text(answer: Answer) -> str:
    """Return the true answer as a policy would write it."""
    if isinstance(answer.value, str):
        return answer.value
    if isinstance(answer.value, float):
        return f"{answer.value:g}"
    return _brackets(answer.value)


def _brackets(value: Sequence[Any] | float) -> str:
    if isinstance(value, Sequence):
        return "[" + ",".join(_brackets(v) for v in value) + "]"
    return f"{value:g}"


def _example(graph: SceneGraph) -> str:
    """Return a graph of a scene that does not exist, in the unit and the dimensions asked for."""
    unknown = (0,) * (3 if graph.frame == "camera0" else 2)
    dimensions = len(next((node.pos for frame in graph.frames for node in frame.nodes), unknown))
    nodes = (
        Node(id="lamp.1", label="lamp", pos=(4.0, 7.0, 1.0)[:dimensions]),
        Node(id="sofa.1", label="sofa", pos=(1.0, 3.0, 5.0)[:dimensions]),
    )
    return graphs.to_json(
        SceneGraph(unit=graph.unit, frame=graph.frame, frames=(GraphFrame(t=0.0, nodes=nodes),))
    )
