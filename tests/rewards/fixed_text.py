"""Search for the fixed text with the highest graph reward, to measure what can be had without looking (probe l).

In: training scenes of the tabletop world. Out: the places and the distance to put into `rewards.probes.FIXED_TEXTS`. Random
steps from the best text so far, shorter after every round without a better one; same seed, same result.

`python -m tests.rewards.fixed_text [--difficulty full]`; one to three minutes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from rewards.graph import GraphRule, prepare, reward_group
from rewards.match import Floats
from rewards.probes import FixedText, fixed_graph, tabletop_records
from videostr.tabletop.build import Split
from videostr.tabletop.world import Difficulty
from videostr.types import SceneGraph

ROUNDS = 60
STEPS_PER_ROUND = 24


def search(truths: Sequence[SceneGraph], seed: int = 0, rounds: int = ROUNDS) -> tuple[FixedText, float]:
    """Return the best text found and its mean graph reward over the scenes.

    Args:
        truths: true graphs of one unit, each with a node.
        seed: of the random steps.
        rounds: how often `STEPS_PER_ROUND` texts are compared.
    """
    rng, rule = np.random.default_rng(seed), GraphRule()
    targets = [prepare(truth, rule) for truth in truths]
    pos = np.concatenate([target.pos for target in targets])
    dist = np.concatenate([target.dist for target in targets])
    spread = pos.std(axis=0)
    slots = max(len({node.id for item in truth.frames for node in item.nodes}) for truth in truths)

    def rewards(texts: Sequence[FixedText]) -> Floats:
        scores = [
            [
                score.graph
                for score in reward_group([fixed_graph(truth, text) for text in texts], target, rule)
            ]
            for truth, target in zip(truths, targets, strict=True)
        ]
        mean: Floats = np.mean(scores, axis=0)
        return mean

    def text(values: Floats) -> FixedText:
        places = pos.mean(axis=0) + spread * values[1:].reshape(slots, -1)
        return FixedText(
            places=tuple(tuple(place) for place in places.round(2).tolist()),
            dist=round(float(np.median(dist) * np.exp(0.5 * values[0])), 2),
        )

    best, step = 0.3 * rng.normal(size=1 + slots * pos.shape[1]), 0.5
    highest = float(rewards([text(best)])[0])
    for _ in range(rounds):
        tried = best + step * rng.normal(size=(STEPS_PER_ROUND, len(best))) * (
            rng.random((STEPS_PER_ROUND, len(best))) < 0.4
        )
        found = rewards([text(values) for values in tried])
        if found.max() > highest:
            best, highest = tried[found.argmax()], float(found.max())
        else:
            step *= 0.85
    return text(best), highest


def main() -> None:
    """Print the best text found."""
    parser = argparse.ArgumentParser(prog="python -m tests.rewards.fixed_text", description=__doc__)
    parser.add_argument("--difficulty", choices=[d.value for d in Difficulty], default="easy")
    parser.add_argument("--scenes", type=int, default=48, help="how many training scenes")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    records = tabletop_records(options.scenes, Difficulty(options.difficulty), split=Split.TRAIN)
    truths = [r.graph for r in records if r.graph is not None and any(item.nodes for item in r.graph.frames)]
    found, highest = search(truths, options.seed)
    sys.stdout.write(f"{found}\ngraph reward {highest:.3f} over {len(truths)} training scenes\n")


if __name__ == "__main__":
    main()
