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

from rewards.rubric import Rubric
from rewards.service.address import parse_address, read_token
from rewards.service.server import RewardServer, Settings
from videostr import config as configs
from videostr.errors import ConfigError, RewardError, exit_status_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status as in the module's docstring."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s")
    options = _parser().parse_args(arguments)
    try:
        asyncio.run(_serve(_settings(options), _rubric(options), options.grace))
    except (ConfigError, RewardError) as error:
        print(f"error: {error}", file=sys.stderr)
        return exit_status_of(error)
    return 0


async def _serve(settings: Settings, rubric: Rubric, grace_s: float) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    server = await RewardServer.start(settings, rubric)
    print(f"serving on {server.address} (workers: {settings.num_workers})", flush=True)
    if server.metrics_address is not None:
        print(f"metrics on http://{server.metrics_address}/metrics", flush=True)
    await stop.wait()
    print("stopping: new groups are refused, accepted ones are finished", flush=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.remove_signal_handler(number)  # a second one ends the process at once
    await server.stop(grace_s)


def _settings(options: argparse.Namespace) -> Settings:
    return Settings(
        listen=parse_address(options.listen, "--listen"),
        metrics=parse_address(options.metrics, "--metrics") if options.metrics else None,
        num_workers=options.workers,
        max_groups=options.max_groups or 32 * options.workers,
        deadline_s=options.deadline,
        max_message_bytes=options.max_message_mib << 20,
        memory_mib=options.worker_memory_mib,
        tls_cert=options.tls_cert,
        tls_key=options.tls_key,
        token=read_token(options.token_file) if options.token_file else "",
    )


def _rubric(options: argparse.Namespace) -> Rubric:
    if options.config:
        config = configs.load(options.config, options.overrides)
        return Rubric.from_config(config.reward, config.sampling.max_tokens)
    if options.overrides:
        raise ConfigError(f"{' '.join(options.overrides)}: overrides change a config; give --config FILE too")
    return Rubric.preset(options.rubric)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m rewards.service", description=__doc__)
    parser.add_argument("--listen", default="127.0.0.1:50051", metavar="HOST:PORT")
    parser.add_argument("--rubric", default="default", help="a preset: default, paper, spacer, answer_only")
    parser.add_argument("--config", metavar="FILE", help="a run's config: the service pays as that run does")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="over the config's values")
    parser.add_argument("--workers", type=int, default=1, help="scoring processes")
    parser.add_argument(
        "--max-groups", type=int, default=0, help="groups accepted at a time; default 32 per worker"
    )
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
    sys.exit(main())
