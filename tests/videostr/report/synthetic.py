"""Run folders of any size: traces as a policy writes them, with the strange ones among them, and frames for their clips.

`python -m tests.videostr.report.synthetic DIR [--traces 10000]` makes one to look at.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from videostr.config.load import dump
from videostr.config.schema import Config
from videostr.traces import TraceRow, write_traces

FAMILIES = ("counting", "direction", "displacement", "distance", "localisation", "order")
LABELS = ("red_ball", "blue_cube", "green_cone", "white_ball", "black_cylinder", "car")
GROUP = 8
PROMPTS = 25
VISITS = 5
"""Steps at which the same prompt is dumped."""
TIMES = 8
HOSTILE = (
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\"> <!-- <script>",
    "line " * 4 + "x" * 20_000,
    "\u202egnp.exe\u202c \u0000\u0007\u200b 𝔘𝔫𝔦 👩‍👩‍👧 ก็็็็็็ \ufeff\u2028 عربي",
    "<think><graph>{never closed <think> </graph></graph><answer>",
    "{{ 7*7 }} ${alert(1)} `'\" &amp; %00 ]]>",
)


def synthetic_run(folder: Path, traces: int, *, seed: int = 0, side: int = 128) -> list[TraceRow]:
    """Write a run of `traces` rollouts (a multiple of 200) into `folder`; returns all rows."""
    rng = np.random.default_rng(seed)
    (folder / "frames").mkdir(parents=True)
    steps = traces // (GROUP * PROMPTS)
    config = Config()
    config.model.path, config.data.train = "m", "d"
    config.train.steps, config.train.prompts_per_step, config.train.traces_every = steps, PROMPTS, 1
    (folder / "config.yaml").write_text(dump(config))
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(_metrics(rng, i, steps)) + "\n" for i in range(1, steps + 1))
    )
    prompts = [
        _prompt(rng, number, folder / "frames", side) for number in range(steps * PROMPTS // VISITS + PROMPTS)
    ]
    rows = []
    for step in range(1, steps + 1):
        first = (step - 1) // VISITS * PROMPTS
        chosen = prompts[first : first + PROMPTS]
        found = [_rollout(rng, step, prompt, n) for prompt in chosen for n in range(GROUP)]
        write_traces(folder / "traces" / f"step_{step:06d}.parquet", found)
        rows += found
    return rows


def _metrics(rng: np.random.Generator, step: int, steps: int) -> dict[str, float]:
    learned = step / steps
    times = {"rollout": 20 + 4 * rng.random(), "reward": 0.4, "learn": 14 + 2 * rng.random(), "sync": 1.1}
    return {
        "step": step,
        "version": step,
        "reward/total": 0.9 + 0.6 * learned + 0.1 * rng.random(),
        "reward/format": 0.9 + 0.1 * learned,
        "reward/answer": 0.3 + 0.3 * learned + 0.05 * rng.random(),
        "reward/graph": 0.4 + 0.3 * learned,
        "loss": 0.01 * float(rng.normal()),
        "entropy": 0.8 - 0.3 * learned,
        "mismatch_kl": 0.001,
        "clip_fraction": 0.01,
        "tokens/prompt": 20_000,
        "tokens/completion": 80_000,
        "truncated_fraction": 0.02,
        "zero_variance_groups": 3,
        "staleness/mean": 0.0,
        "staleness/max": 0.0,
        "failures/engine_died": int(step > steps / 2),
        **{f"time/{name}": seconds for name, seconds in times.items()},
        "time/wait": times["rollout"] + times["reward"],
        "time/step": sum(times.values()) + 0.05,
        "rollout/tokens_per_s": 3500.0,
    }


def _prompt(rng: np.random.Generator, number: int, store: Path, side: int) -> dict[str, Any]:
    objects = int(rng.integers(2, 6))
    paths = rng.integers(50, 950, (objects, 1, 2)) + rng.integers(-40, 40, (objects, TIMES, 2)).cumsum(axis=1)
    names = [f"{LABELS[i % len(LABELS)]}.{1 + i // len(LABELS)}" for i in range(objects)]
    # Smooth, so that frames take the room of a photograph's and not that of noise.
    ramp = np.linspace(0, 255, side)
    base = np.stack(
        np.broadcast_arrays(ramp[None, :], ramp[:, None], np.full((side, side), rng.integers(256))), -1
    )
    pixels = np.clip(base[None] + rng.normal(0, 6, (TIMES, side, side, 3)), 0, 255).astype(np.uint8)
    np.save(store / f"clip{number}.npy", pixels)
    about = {
        "times": list(range(TIMES)),
        "indices": list(range(TIMES)),
        "fps": 1.0,
        "total_frames": TIMES,
        "damaged": 0,
    }
    (store / f"clip{number}.json").write_text(json.dumps(about))
    return {
        "record": f"synthetic/{number}",
        "family": FAMILIES[number % len(FAMILIES)],
        "question": f"Question {number}: how far does {names[0]} move from 0 s to 7 s?",
        "clip": f"clip{number}",
        "names": names,
        "paths": np.clip(paths, 0, 1000),
        "graph": _graph(names, np.clip(paths, 0, 1000)),
    }


def _graph(names: list[str], paths: np.ndarray) -> str:
    frames = [
        {"t": float(t), "nodes": [{"id": name, "pos": paths[i, t].tolist()} for i, name in enumerate(names)]}
        for t in range(TIMES)
    ]
    return json.dumps({"unit": "px", "frames": frames}, separators=(",", ":"))


def _rollout(rng: np.random.Generator, step: int, prompt: dict[str, Any], number: int) -> TraceRow:
    fate = rng.random()
    graph = _graph(
        prompt["names"], np.clip(prompt["paths"] + rng.integers(-60, 60, prompt["paths"].shape), 0, 1000)
    )
    absence = "" if fate > 0.1 else ("ABSENT", "BAD_JSON")[int(rng.integers(2))]
    answer, form = float(rng.integers(5)) / 4, float(fate > 0.05)
    hostile = HOSTILE[int(rng.integers(len(HOSTILE)))] if rng.random() < 0.02 else ""
    words = " ".join(
        rng.choice(["near", "then", "left", "of", "the", "moves", "behind", prompt["names"][0]], 120)
    )
    parts = {
        "format": form,
        "answer": answer,
        "graph": 0.0 if absence else float(rng.random()),
        "length": -float(fate < 0.03),
    }
    return TraceRow(
        step=step,
        record_id=prompt["record"],
        question=prompt["question"],
        family=prompt["family"],
        prompt=f"<|im_start|>user\n{prompt['question']}",
        rollout=number,
        text=f"<think>{words}{hostile}<graph>{graph}</graph></think> <answer>{answer}</answer>",
        total=round(sum(parts.values()), 4),
        parts=json.dumps(parts),
        notes=json.dumps([f"answer: {answer}, the truth is 1", *([hostile] if hostile else [])]),
        advantage=float(rng.normal()),
        tokens=int(rng.integers(200, 1024)),
        finish_reason="LENGTH" if fate < 0.03 else "STOP",
        true_answer="1 px",
        true_graph=prompt["graph"],
        predicted_graph="" if absence else graph,
        absence=absence,
        reference="image",
        clip=prompt["clip"],
    )


def main() -> None:
    """Make one."""
    parser = argparse.ArgumentParser(description="A run folder with synthetic traces.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--traces", type=int, default=10_000)
    options = parser.parse_args()
    synthetic_run(options.folder, options.traces)


if __name__ == "__main__":
    main()
