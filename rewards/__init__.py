"""Rewards: opinions about completions. Deterministic, each in [0, 1], on CPU, without a cluster."""

from __future__ import annotations

from rewards.rubric import Rubric, score, score_group, score_group_with_traces

__all__ = ["Rubric", "score", "score_group", "score_group_with_traces"]
