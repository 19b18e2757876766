"""`python -m rewards.service`: the gRPC reward server; docs/reward_service.md describes it.

Exit status: 0 after SIGTERM or SIGINT and the answers to what was accepted, 1 a worker did not start, 2 bad input.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace

from rewards.rubric import Rubric, load_custom
from rewards.service.address import parse_address, read_token
from rewards.service.numbers import MAX_MESSAGE_MIB, MAX_SECONDS, MAX_WEIGHT, check_number
from rewards.service.server import RewardServer
from rewards.service.settings import Settings
from videostr.command import command, run_main
from videostr.errors import ConfigError


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal; return the exit status of the module's docstring."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s")
    given = sys.argv[1:] if arguments is None else list(arguments)
    with_config = any(word.partition("=")[0] == "--config" for word in given)
    options = _parser(with_config=with_config).parse_args(given)
    rubric = _rubric_of_config(options) if with_config else _rubric_of_flags(options)
    asyncio.run(_serve(_settings(options), rubric, options.grace))
    return 0


async def _serve(settings: Settings, rubric: Rubric, grace_s: float) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    server = await RewardServer.start(settings, rubric)
    memory = f"at most {settings.max_bytes >> 20} MiB of requests"
    print(f"serving on {server.address} (workers: {settings.num_workers}, {memory})", flush=True)
    if server.metrics_address is not None:
        print(f"metrics on http://{server.metrics_address}/metrics", flush=True)
    await stop.wait()
    print("stopping: new groups are refused, accepted ones are finished", flush=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.remove_signal_handler(number)  # a second one ends the process at once
    await server.stop(grace_s)


def _settings(options: argparse.Namespace) -> Settings:
    check_number("--max-message-mib", options.max_message_mib, 1, MAX_MESSAGE_MIB, "MiB")
    check_number("--grace", options.grace, 0, MAX_SECONDS, "seconds")
    settings = Settings(
        listen=parse_address(options.listen, "--listen"),
        metrics=parse_address(options.metrics, "--metrics") if options.metrics else None,
        num_workers=options.workers,
        max_groups=32 * options.workers if options.max_groups is None else options.max_groups,
        deadline_s=options.deadline,
        max_message_bytes=options.max_message_mib << 20,
        memory_mib=options.worker_memory_mib,
        tls_cert=options.tls_cert,
        tls_key=options.tls_key,
        token=read_token(options.token_file) if options.token_file else "",
    )
    settings.check()
    return settings


def _rubric_of_config(options: argparse.Namespace) -> Rubric:
    from videostr.config.load import load  # only here: it needs OmegaConf

    config = load(options.config, options.overrides)
    return Rubric.from_config(config.reward, config.sampling.max_tokens)


def _rubric_of_flags(options: argparse.Namespace) -> Rubric:
    rubric = Rubric.preset(options.rubric)
    if not options.custom:
        if options.w_custom is not None:
            raise ConfigError("--w-custom: has no effect without --custom", remedy="give both")
        return rubric
    load_custom(options.custom, "--custom")
    weight = 1.0 if options.w_custom is None else options.w_custom
    check_number("--w-custom", weight, 0, MAX_WEIGHT)
    return replace(rubric, custom=options.custom, w_custom=weight)


def _parser(*, with_config: bool) -> argparse.ArgumentParser:
    """Return the options; the rubric is that of a run's config, or that of flags."""
    parser = argparse.ArgumentParser(
        prog="python -m rewards.service", description=__doc__, allow_abbrev=False
    )
    if with_config:
        parser.add_argument(
            "--config", required=True, metavar="FILE", help="score as the run of this config does"
        )
        parser.add_argument("overrides", nargs="*", metavar="key=value", help="in place of the file's")
    else:
        parser.add_argument(
            "--rubric", default="default", help="a preset: default, paper, spacer, answer_only"
        )
        parser.add_argument(
            "--custom", metavar="PACKAGE.MODULE:FUNCTION", help="a reward of your own, on top of the rubric"
        )
        parser.add_argument("--w-custom", type=float, metavar="WEIGHT", help="of --custom; default 1")
    parser.add_argument("--listen", default="127.0.0.1:50051", metavar="HOST:PORT")
    parser.add_argument("--workers", type=int, default=1, help="scoring processes")
    parser.add_argument("--max-groups", type=int, help="groups accepted at a time; default 32 per worker")
    parser.add_argument("--deadline", type=float, default=30.0, help="longest scoring of one group, seconds")
    parser.add_argument(
        "--grace", type=float, default=40.0, help="longest wait for accepted groups at the end, seconds"
    )
    parser.add_argument("--max-message-mib", type=int, default=4, help="longest request")
    parser.add_argument("--worker-memory-mib", type=int, default=4096, help="most data of one process")
    parser.add_argument("--metrics", default="", metavar="HOST:PORT", help="Prometheus page, loopback only")
    parser.add_argument("--tls-cert", default="", metavar="FILE")
    parser.add_argument("--tls-key", default="", metavar="FILE")
    parser.add_argument("--token-file", default="", metavar="FILE", help="what callers must show")
    return parser


if __name__ == "__main__":
    run_main(main)
