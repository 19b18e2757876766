"""Build hook: puts into the wheel what is not a file of its packages: the configs, and the messages of the reward service, which
protoc generates from reward.proto.

deploy/setup.sh puts the messages into the environment of a checkout by the same function: `python setup.py messages FOLDER`. They
are never files of the tree: Ray leaves out of its copy of the working directory what git ignores.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PACKAGE = "videostr_reward_api"


def generate_messages(folder: Path) -> None:
    """Write the package of messages into `folder`; replaces one that is there.

    Raises:
        RuntimeError: protoc failed; its words stand on standard error.
    """
    import grpc_tools
    from grpc_tools import protoc

    package = folder / PACKAGE
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    for name in ("__init__.py", "py.typed"):
        (package / name).touch()
    source = Path(__file__).parent / "rewards/service"
    include = Path(grpc_tools.__file__).parent / "_proto"
    arguments = [f"-I{PACKAGE}={source}", f"-I{include}", f"--python_out={folder}", f"--pyi_out={folder}"]
    if protoc.main(["protoc", *arguments, f"{PACKAGE}/reward.proto"]) != 0:
        raise RuntimeError("protoc could not compile rewards/service/reward.proto; its message stands above")


class Build(build_py):
    """setuptools' command, the messages, and the configs where videostr/shipped.py finds them."""

    def run(self) -> None:
        """Build."""
        super().run()
        if not self.editable_mode:
            library = Path(self.build_lib)
            generate_messages(library)
            shutil.copytree(
                Path(__file__).parent / "configs", library / "videostr/configs", dirs_exist_ok=True
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["messages"]:
        generate_messages(Path(sys.argv[2]))
    else:
        setup(cmdclass={"build_py": Build})
