"""A user's function by its name, `package.module:function`: for `reward.custom` and `loss.custom`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from videostr.errors import ConfigError, error_text


def load_function(key: str, name: str, example: str) -> Callable[..., Any]:
    """Return the function that a config key names.

    Args:
        key: the config key, for the message.
        name: its value.
        example: a value that is right in form, for the message.

    Raises:
        ConfigError: the name has another form, the module cannot be imported, or has no such function.
    """
    module, _, function = name.partition(":")
    if not module or not function:
        raise ConfigError(f"{key} = {name!r}: must be package.module:function, e.g. {example}")
    try:
        found = getattr(importlib.import_module(module), function, None)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's module runs here, SystemExit included
        raise ConfigError(
            f"{key} = {name!r}: importing {module} raised {error_text(error)}",
            remedy="it must lie in the working directory or on PYTHONPATH, on every node",
        ) from error
    if not callable(found):
        raise ConfigError(
            f"{key} = {name!r}: {module} has no function {function}",
            remedy="name one that it defines at its top level",
        )
    return found  # type: ignore[no-any-return]
