"""Rewards: opinions about completions. Deterministic, each in [0, 1], on CPU, without a cluster."""

from __future__ import annotations

from rewards.rubric import Rubric, judge_group, score, score_group

__all__ = ["Rubric", "judge_group", "score", "score_group"]
