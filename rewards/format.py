"""Format reward: is the text a trace?"""

from __future__ import annotations

from videostr.types import Trace


def reward(trace: Trace) -> float:
    """Return 1 if the text matches the trace format exactly (method, section 1), else 0."""
    return float(trace.well_formed)
