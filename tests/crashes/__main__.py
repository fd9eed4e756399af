"""Play rounds of faults: `PYTHONPATH=tests python -m crashes`, or `nox -s crashes`.

    nox -s crashes                              20 rounds, five minutes
    nox -s crashes -- --rounds 250              an hour
    nox -s crashes -- --seed 7 --first 31 --rounds 1     round 31 of seed 7 once more

A round is determined by seed and number, apart from the machine's own timing. Every round prints
what happened in it. The first one that goes wrong ends the run with exit code 1, and its folder
stays, with the tables, the events of all members and the servers' logs.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from crashes.members import Wrong
from crashes.rounds import BROKER_CONFIG, Servers, play
from services import ServiceMissing
from services.kafka import KafkaBroker, kafka_software
from services.registry import SchemaRegistry, registry_software
from services.seaweedfs import SeaweedFs, find_weed


def main() -> None:
    """Play what the command line says."""
    args = _arguments()
    folder = Path(tempfile.mkdtemp(prefix="k2-crashes-"))
    with _servers(folder) as servers:
        for number in range(args.first, args.first + args.rounds):
            started = time.monotonic()
            print(f"round {number} of seed {args.seed}", end=" ", flush=True)
            place = folder / f"round-{number}"
            try:
                played = play(servers, place, seed=args.seed, number=number)
            except Wrong as exc:
                sys.exit(f"went wrong, see {place}:\n{exc}")
            print(f"{time.monotonic() - started:.0f} s {played}", flush=True)
            shutil.rmtree(place)
    shutil.rmtree(folder)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="crashes", description="Crash k2 consume, and look.")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    return parser.parse_args()


@contextmanager
def _servers(folder: Path) -> Iterator[Servers]:
    broker_folder, registry_folder = folder / "broker", folder / "registry"
    broker_folder.mkdir()
    registry_folder.mkdir()
    broker = KafkaBroker(broker_folder, software=kafka_software(), config=BROKER_CONFIG)
    registry = SchemaRegistry(registry_folder, software=registry_software())
    store = _store(folder / "store")
    with ExitStack() as stack:
        for server in (broker, registry, store):
            if server is not None:
                stack.callback(server.kill)
                server.start()
        yield Servers(broker=broker, registry=registry, store=store)


def _store(folder: Path) -> SeaweedFs | None:
    try:
        weed = find_weed()
    except ServiceMissing:
        return None
    folder.mkdir()
    return SeaweedFs(folder, weed=weed)


if __name__ == "__main__":
    main()
