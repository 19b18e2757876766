"""`make test LATEST=1`: say which checks and tests the newest versions that pyproject.toml allows break.

All run with the newest versions (build/latest); what fails runs again with the locked ones (.venv), so that what is left is
the fault of the newer versions.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

LOCKED, NEWEST = ".venv/bin/python", "build/latest/bin/python"
CACHE = Path("build/latest/pytest-cache")
CHECKS = (["ruff", "check"], ["ruff", "format", "--check"], ["mypy"])


def versions(python: str) -> dict[str, str]:
    """Return installed packages and their versions."""
    command = [python, "-m", "uv", "pip", "list", "--quiet", "--format", "json", "--python", python]
    listed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {package["name"]: package["version"] for package in listed}


def passes(python: str, *command: str) -> bool:
    """Return whether a module's command ends with status 0; its output goes on to the terminal."""
    return subprocess.run([python, "-m", *command], check=False).returncode == 0


def failing_tests(python: str, *options: str) -> set[str]:
    """Run pytest; return the ids of the tests that fail.

    Raises:
        SystemExit: pytest could not run the tests.
    """
    command = [python, "-m", "pytest", "-o", f"cache_dir={CACHE}", *options]
    status = subprocess.run(command, check=False).returncode
    if status not in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}:
        sys.exit(f"{' '.join(command)} ended with status {status}: not all tests were run; see above")
    return set(json.loads((CACHE / "v/cache/lastfailed").read_text())) if status else set()


def main() -> int:
    """Print the differences of versions and what they break; return 1 where they break something."""
    broken = {" ".join(check) for check in CHECKS if not passes(NEWEST, *check) and passes(LOCKED, *check)}
    if failed := failing_tests(NEWEST, "--cache-clear"):
        broken |= failed - failing_tests(LOCKED, "--last-failed")
    locked, newest = versions(LOCKED), versions(NEWEST)
    newer = [
        f"  {name} {locked.get(name, 'absent')} -> {newest.get(name, 'absent')}"
        for name in sorted(locked | newest)
        if locked.get(name) != newest.get(name)
    ]
    print("\nlocked -> newest versions:", *(newer or ["  all locked versions are the newest"]), sep="\n")
    if broken:
        print(
            "pass with the locked versions, fail with the newest:",
            *sorted(f"  {b}" for b in broken),
            sep="\n",
        )
    else:
        print("the newest versions break nothing")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
