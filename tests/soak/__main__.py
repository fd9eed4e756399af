"""Soak `k2 stream`: `PYTHONPATH=tests python -m soak`, or `nox -s soak`.

    nox -s soak                                 an hour, into the table
    nox -s soak -- --kafka                      every second round through Kafka
    nox -s soak -- --minutes 600
    nox -s soak -- --market usdm                futures, whose streams are on one of two routes
    nox -s soak -- --seed 7 --first 3 --minutes 10     round 3 of seed 7 once more

A round lasts ten minutes, and is determined by seed and number, apart from the machine's own
timing. The first round that goes wrong ends the run with exit code 1, and its folder stays, with
the tables and the events of all runs.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Final

from crashes.members import Wrong
from k2cli.ingestion.symbols import Market
from services.kafka import KafkaBroker, kafka_software
from services.registry import SchemaRegistry, registry_software
from soak.faults import LONG, Plan
from soak.rounds import play
from support.cluster import Cluster
from support.running import environment

_ROUND_S: Final = 600.0
_FUTURES_FAULTS: Final = ("drops", "silent routes", "silent streams", "garbage", "shutdowns")
# Their REST API serves six pages a minute.
_FUTURES_PLAN: Final = replace(LONG, rate=5.0, unlisted_every=2999, faults=_FUTURES_FAULTS)

Servers = tuple[KafkaBroker, SchemaRegistry]


def main() -> None:
    """Play what the command line says."""
    args = _arguments()
    market = Market(args.market)
    plan = LONG if market is Market.SPOT else _FUTURES_PLAN
    folder = Path(tempfile.mkdtemp(prefix="k2-soak-"))
    until_s = time.monotonic() + 60 * args.minutes
    with _servers(folder, is_wanted=args.kafka) as servers:
        for number in count(args.first):
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                break
            place = folder / f"round-{number}"
            used = servers if number % 2 else None
            print(f"round {number} of seed {args.seed}", end=" ", flush=True)
            try:
                _play(place, plan, used, market, min(left_s, _ROUND_S), args.seed, number)
            except Wrong as exc:
                sys.exit(f"went wrong, see {place}:\n{exc}")
            shutil.rmtree(place)
    shutil.rmtree(folder)


def _play(  # noqa: PLR0913, PLR0917
    place: Path,
    plan: Plan,
    servers: Servers | None,
    market: Market,
    seconds: float,
    seed: int,
    number: int,
) -> None:
    home = place / "home"
    home.mkdir(parents=True)
    cluster, topic = _cluster(home, servers), None
    if servers is not None:
        topic = f"soak-{seed}-{number}.trades"
        cluster.create(topic)
    where = "into the table" if topic is None else "through Kafka"
    played = play(
        cluster, plan, seconds=seconds, seed=seed, number=number, topic=topic, market=market
    )
    print(f"{where}: {played}", flush=True)


def _cluster(home: Path, servers: Servers | None) -> Cluster:
    """Return a home of its own; with servers, its stream may produce to Kafka."""
    if servers is None:
        return Cluster(bootstrap="", registry_url="", home=home, env=environment(home))
    broker, registry = servers
    variables = {
        "K2_KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap,
        "K2_SCHEMA_REGISTRY_URL": registry.url,
    }
    return Cluster(
        bootstrap=broker.bootstrap,
        registry_url=registry.url,
        home=home,
        env=environment(home, variables),
    )


@contextmanager
def _servers(folder: Path, *, is_wanted: bool) -> Iterator[Servers | None]:
    if not is_wanted:
        yield None
        return
    folders = [folder / "broker", folder / "registry"]
    for each in folders:
        each.mkdir()
    broker = KafkaBroker(folders[0], software=kafka_software())
    registry = SchemaRegistry(folders[1], software=registry_software())
    with ExitStack() as stack:
        for server in (broker, registry):
            stack.callback(server.kill)
            server.start()
        yield broker, registry


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="soak", description="Soak k2 stream, and compare.")
    parser.add_argument("--minutes", type=float, default=60, help="of misbehaviour in total")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    parser.add_argument("--market", choices=["spot", "usdm"], default="spot")
    parser.add_argument("--kafka", action="store_true", help="odd rounds go through Kafka")
    return parser.parse_args()


if __name__ == "__main__":
    main()
