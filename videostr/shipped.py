"""Files that come with the package: the embedded policy and the configs, named `videostr/...` and `configs/...`.

They are found from any folder, in a checkout and in an installed package alike; one of that name below the working directory
comes first.
"""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent


def find(path: str | Path) -> Path:
    """Return `path`; where it does not exist and names a file that comes with the package, that file."""
    path = Path(path)
    if not path.is_absolute() and not path.exists() and path.parts[:1] in {("videostr",), ("configs",)}:
        folders = (PACKAGE, PACKAGE.parent)  # a wheel has the configs in the package, a checkout next to it
        return next((folder / path for folder in folders if (folder / path).exists()), path)
    return path
