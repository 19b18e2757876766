"""Bounds of the numbers that the command, the server and the clients take."""

from __future__ import annotations

from videostr.errors import ConfigError

MIN_SECONDS = 0.1
MAX_SECONDS = 30 * 86400.0
MAX_WORKERS = 1024
MAX_GROUPS = 1 << 16
MAX_MESSAGE_MIB = 1024
"""Below the 2 GiB at which protocol buffers end."""
MAX_MEMORY_MIB = 1 << 24
MAX_WEIGHT = 1e6


def check_number(name: str, value: object, low: float, high: float, unit: str = "") -> None:
    """Refuse what is not a number from `low` to `high`: NaN, infinity and other types among it.

    Args:
        name: of the option or argument.
        value: what was given.
        low: smallest number allowed.
        high: largest.
        unit: of the number, for the message.

    Raises:
        ConfigError: names option, value and rule.
    """
    # NaN is in no range.
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(
            f"{name} = {value!r:.80}: must be a number from {low:.10g} to {high:.10g}{f' {unit}' if unit else ''}",
            remedy="give another one, or leave it out for the default",
        )
