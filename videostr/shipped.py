"""Files that come with the package: the embedded policy and the configs.

A checkout has them below the working directory, as `videostr/...` and `configs/...`; an installed package has them in its own
folder. The same path names them in both.
"""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent


def find(path: str | Path) -> Path:
    """Return `path`; where it does not exist and names a file that comes with the package, that file."""
    path = Path(path)
    if not path.is_absolute() and not path.exists():
        inside = {"videostr": PACKAGE.parent, "configs": PACKAGE}.get(path.parts[0] if path.parts else "")
        if inside is not None and (inside / path).exists():
            return inside / path
    return path
