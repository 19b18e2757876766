"""`python -m videostr.ablate --config FILE [key=value ...]`: trains every arm with every seed, and compares them.

Each arm is the training run of `base` with other keys. Runs that are done are not run again, and others continue from their last
checkpoint: after any end, the same command goes on. In its folder: `ablation.html`, `ablation.md` and `ablation.json`, written
again after every run; a run folder and a log for each arm and seed. Exit status as of videostr/launch.py; 1 where runs failed.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Sequence
from pathlib import Path

from videostr.ablate.page import table, write_results
from videostr.ablate.results import results
from videostr.ablate.runs import ArmRun, run_all, runs_of
from videostr.command import STOPPED, command, config_parser, run_main
from videostr.config.load import load_ablation
from videostr.config.schema import AblationConfig
from videostr.console import log_to_console
from videostr.lock import FolderLock

log = logging.getLogger("videostr.ablate")


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status."""
    options = config_parser("python -m videostr.ablate", __doc__).parse_args(arguments)
    log_to_console()
    config = load_ablation(options.config, options.overrides)
    runs = runs_of(config, options.config)
    folder = Path(config.dir) / config.name
    with FolderLock(folder, "name"):
        return asyncio.run(_ablate(config, folder, runs))


async def _ablate(config: AblationConfig, folder: Path, runs: Sequence[ArmRun]) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    reference = config.compared_with

    def show() -> None:
        arms = results(runs, reference, config.resamples)
        page = write_results(folder, config, arms, len(runs), sum(run.done for run in runs))
        log.info("\n%s%s", table(arms, reference), page)

    failed = await run_all(runs, config.at_once, stop, after=show)
    if stop.is_set():
        log.info("stopped; the same command continues from here")
        return STOPPED
    show()
    for run in failed:
        log.error("%s failed: %s says why", run.name, folder / f"{run.name}.log")
    return 1 if failed else 0


if __name__ == "__main__":
    run_main(main)
