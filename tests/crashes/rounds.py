"""One round: a topic, a table, members of a group, a producer, faults, and the look at the end."""

import json
import os
import random
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from time import sleep
from typing import Final

from crashes.members import TIMEOUT_S, Member, Production, Wrong, wait_for
from crashes.stopping import POINTS
from k2cli.codec.encode import wire_header
from k2cli.config import load_settings
from k2cli.ingestion.kafka.registry import open_registry, subject_of
from k2cli.ingestion.kafka.topics import Topics
from k2cli.records import TRADES
from k2cli.storage.lake import open_lake
from services.kafka import KafkaBroker
from services.registry import SchemaRegistry
from services.seaweedfs import SeaweedFs
from support.cluster import Cluster, ids_of, numbered_trades

# So that a member that is gone is noticed soon.
BROKER_CONFIG: Final = {"group.min.session.timeout.ms": "1000"}
_SESSION_S: Final = 1.5
_SETTINGS: Final = {
    "K2_KAFKA_SESSION_TIMEOUT_MS": str(round(_SESSION_S * 1000)),
    "K2_KAFKA_HEARTBEAT_INTERVAL_MS": "300",
    "K2_KAFKA_MAX_POLL_INTERVAL_MS": "4000",
    "K2_KAFKA_RECONNECT_BACKOFF_MAX_MS": "500",
}
_CATALOG_TIMEOUT_S: Final = 1  # then a commit is refused
_IN_STORE: Final = 0.3  # of the rounds
_MEMBERS: Final = 3  # at most, and one more in some faults
_TOLD: Final = (
    "commit",
    "commit_lost",
    "revoked",
    "topic_recreated",
    "kafka_unavailable",
    "registry_unavailable",
    "catalog_unavailable",
)


@dataclass(frozen=True, kw_only=True)
class Servers:
    """What a round runs on; its faults stop the servers, and start them again."""

    broker: KafkaBroker
    registry: SchemaRegistry
    store: SeaweedFs | None = None  # if there is one, some rounds have their tables in it


@dataclass(frozen=True, kw_only=True)
class Played:
    """What happened in a round."""

    faults: Sequence[str]
    records: int
    is_in_store: bool
    events: Mapping[str, int]  # of all members

    def __str__(self) -> str:
        told = " ".join(f"{name}={self.events[name]}" for name in _TOLD if self.events[name])
        where = " in the store" if self.is_in_store else ""
        return f"{' + '.join(self.faults)}: {self.records} records{where}; {told}"


class Round:
    """A round that goes on. Made by `open_round`."""

    def __init__(
        self,
        servers: Servers,
        cluster: Cluster,
        *,
        topic: str,
        chance: Random,
        store: SeaweedFs | None,
    ) -> None:
        self.servers = servers
        self.store = store  # that has the tables
        self.cluster = cluster
        self.topic = topic
        self.chance = chance
        self.members: list[Member] = []  # those that should be running
        self.past: list[Member] = []
        self.deleted = 0  # records that were stored, and then deleted with their topic
        self.production = self.produce(cluster.header(topic))

    def produce(self, header: bytes, *, begin: int = 0) -> Production:
        """Begin to produce."""
        kafka = {**self.cluster.kafka, "reconnect.backoff.max.ms": "500", "log_level": "0"}
        return Production(kafka, self.topic, header, begin=begin)

    def pause(self, least_s: float, most_s: float) -> None:
        """Let some time go by."""
        sleep(self.chance.uniform(least_s, most_s))

    def add(self, *, stop_at: str | None = None, times: int = 1) -> Member:
        """Start one more member."""
        number = len(self.members) + len(self.past)
        member = Member(
            *("--topic", self.topic, "--group", self.topic),
            *("--batch-rows", str(self.chance.choice([50, 300, 2_000]))),
            *("--commit-interval", self.chance.choice(["100ms", "300ms", "1s"])),
            env=self.cluster.env,
            log=self.cluster.home.with_name(f"member-{number}.log"),
            stop_at=stop_at,
            times=times,
        )
        self.members.append(member)
        return member

    def one(self) -> Member:
        """Return any member; there is one."""
        return self.chance.choice(self.members) if self.members else self.add()

    def leave(self, member: Member, end: Callable[[Member], None]) -> None:
        """Take a member out of those that should be running, and end it."""
        self.members.remove(member)
        self.past.append(member)
        end(member)

    def check_members(self) -> None:
        """Nothing but a signal ends a member once it runs: whatever goes away, it waits."""
        for member in list(self.members):
            if member.is_running:
                continue
            if not member.came_to_run:
                self.leave(member, Member.kill)
                continue
            code = member.process.returncode
            raise Wrong(f"a member ended: exit code {code}, {member.log}\n{member.tail()}")

    def finish(self) -> int:
        """End all, consume the rest, and compare; return the number of records."""
        count = self.production.end()
        self.check_members()
        for member in list(self.members):
            self.leave(member, Member.terminate)
        info = Topics(self.cluster.kafka, timeout_s=TIMEOUT_S).describe([self.topic])[0]
        stored = sum(each.next - each.first for each in info.partitions)
        if stored != count - self.deleted:
            raise Wrong(f"{count} records were produced, but {stored} are in the topic")
        summary = self.drain(self.chance.choice([self.topic, f"{self.topic}-drain"]))
        _compare(self.cluster.ids(), count, f"the last run: {summary}")
        if summary["rejects"] or summary["missing"]:
            raise Wrong(f"rejects or gaps: {summary}")
        return count

    def drain(self, group: str) -> dict[str, int]:
        """Consume to the end of the topic; return the summary."""
        args = ("--until-end", "--summary", "json", "--topic", self.topic, "--group", group)
        drain = self.cluster.run("consume", *args)
        if drain.exit_code != 0:
            raise Wrong(f"a run to the end failed:\n{drain.stderr[-2_000:]}")
        summary: dict[str, int] = json.loads(drain.stdout)
        return summary

    def close(self) -> None:
        """Leave no process behind."""
        for member in self.members:
            member.kill()
        self.production.end()


def _compare(held: Sequence[str], count: int, where: str) -> None:
    expected = ids_of(numbered_trades(count))
    if list(held) == expected:
        return
    found = Counter(held)
    lost = [name for name in expected if name not in found]
    double = [name for name in found if found[name] > 1]
    odd = sorted(found.keys() - set(expected))
    raise Wrong(
        f"of {count} records {len(lost)} are lost {lost[:3]}, {len(double)} are there more than"
        f" once {double[:3]}, {len(odd)} were never produced {odd[:3]}; {where}"
    )


def kill(game: Round) -> None:
    """Kill a member at any moment of its life."""
    victim = game.one() if game.chance.random() < 0.7 else game.add()
    game.pause(0, 2.5)
    game.leave(victim, Member.kill)
    game.pause(0, 0.5)
    game.add()


def kill_in_commit(game: Round) -> None:
    """Kill a member between its data files and its commit, or before the group is told of it."""
    victim = game.add(stop_at=game.chance.choice(sorted(POINTS)), times=game.chance.randint(1, 3))
    victim.wait_until_stopped()
    game.leave(victim, Member.kill)


def outlive_session(game: Round) -> None:
    """Stop a member for so long that others own its partitions, and commit; then let it go on."""
    if game.chance.random() < 0.3:
        zombie = game.one()
        game.pause(0, 1)
        zombie.pause()
    else:
        point, times = game.chance.choice(sorted(POINTS)), game.chance.randint(1, 3)
        zombie = game.add(stop_at=point, times=times)
        zombie.wait_until_stopped()
    heirs = [member for member in game.members if member is not zombie] or [game.add()]
    sleep(_SESSION_S + 0.5)
    before = sum(member.count("commit") for member in heirs)
    is_held = False  # it may have been stopped while it held the lock of the catalog
    for _ in range(100):
        if is_held := sum(member.count("commit") for member in heirs) > before + 1:
            break
        sleep(0.1)
    zombie.go_on()
    game.pause(0.5 if is_held else 1.5, 2.5)


def come_and_go(game: Round) -> None:
    """Let members join and leave, all at once or one by one."""
    while len(game.members) < _MEMBERS:
        game.add()
        game.pause(0, 1)
    game.pause(0, 2)
    for _ in range(game.chance.randint(1, len(game.members))):
        game.leave(game.one(), Member.terminate)
        game.pause(0, 0.5)


def broker_unavailable(game: Round) -> None:
    """Stop or kill the broker, and start it again."""
    broker = game.servers.broker
    end = game.chance.choice([broker.stop, broker.kill])
    end()
    game.pause(0, 2)
    broker.start()
    game.pause(0, 1)


def registry_unavailable(game: Round) -> None:
    """Produce with a schema that no member has seen, while the registry is away."""
    registry = game.servers.registry
    avro = {**TRADES.avro, "round": game.chance.random()}
    with open_registry({"url": registry.url}, timeout_s=TIMEOUT_S) as client:
        header = wire_header(client.register(subject_of(game.topic), avro))
    end = game.chance.choice([registry.stop, registry.kill])
    end()
    game.production.header = header
    try:
        game.pause(0, 5)
    finally:
        registry.start()
    game.pause(0, 1)


def catalog_unavailable(game: Round) -> None:
    """Stop the store, or lock the catalog for long enough: against commits, or all use."""
    if game.store is not None:
        game.store.stop()
        game.pause(0, 3)
        game.store.start()
        game.pause(0, 1)
        return
    how = game.chance.choice(["IMMEDIATE", "EXCLUSIVE"])
    file = game.cluster.home / "catalog.db"
    with closing(sqlite3.connect(file, timeout=TIMEOUT_S, isolation_level=None)) as catalog:
        catalog.execute(f"BEGIN {how}")
        game.pause(1, 5)
        catalog.execute("ROLLBACK")
    game.pause(0, 1)


def recreate_topic(game: Round) -> None:
    """Delete the topic, and create it again after a while, with some of the members paused."""
    game.add()
    game.deleted = game.production.end()
    game.drain(f"{game.topic}-{game.deleted}")
    paused = [member for member in game.members if game.chance.random() < 0.5]
    for member in paused:
        member.pause()
    game.cluster.delete(game.topic)
    game.pause(0, 2)
    game.cluster.create(game.topic, partitions=game.chance.choice([2, 4, 6]))
    game.production = game.produce(game.production.header, begin=game.deleted)
    game.pause(0, 1)
    for member in paused:
        member.go_on()
    game.pause(0.5, 2.5)


FAULTS: Final[tuple[Callable[[Round], None], ...]] = (
    kill_in_commit,
    outlive_session,
    broker_unavailable,
    kill,
    registry_unavailable,
    come_and_go,
    catalog_unavailable,
    recreate_topic,
)


def play(servers: Servers, folder: Path, *, seed: int, number: int) -> Played:
    """Play a round, which `seed` and `number` determine; `folder` is its own.

    Raises:
        Wrong: a record is lost or double, or a member ended or hung. The folder tells more.
    """
    chance = random.Random(f"{seed}/{number}")
    faults = [FAULTS[(2 * number + place) % len(FAULTS)] for place in range(2)]
    faults += chance.sample(FAULTS, chance.randint(0, 1))
    with open_round(
        servers, folder, f"r{seed}-{number}-{chance.getrandbits(32):08x}", chance
    ) as game:
        wait_for(lambda: game.members[0].count("commit") > 0, f"no commit: {folder}")
        for fault in faults:
            fault(game)
            game.check_members()
            if not game.members:
                game.add()
        records = game.finish()
        names = [event["event"] for member in game.past for event in member.events()]
    return Played(
        faults=[fault.__name__ for fault in faults],
        records=records,
        is_in_store=game.store is not None,
        events=Counter(names),
    )


@contextmanager
def open_round(servers: Servers, folder: Path, name: str, chance: Random) -> Iterator[Round]:
    """Open a round with tables and a topic of its own, and one member or two."""
    topic, home = f"{name}.trades", folder / "home"
    store = servers.store if chance.random() < _IN_STORE else None
    cluster = Cluster(
        bootstrap=servers.broker.bootstrap,
        registry_url=servers.registry.url,
        home=home,
        env=_environment(servers, home, _catalog(home, store)),
    )
    home.mkdir(parents=True)
    with open_lake(load_settings(cluster.env), create=True):
        pass
    cluster.create(topic)
    game = Round(servers, cluster, topic=topic, chance=chance, store=store)
    try:
        for _ in range(chance.randint(1, 2)):
            game.add()
        yield game
    finally:
        game.close()


def _catalog(home: Path, store: SeaweedFs | None) -> dict[str, str]:
    if store is not None:
        return store.catalog_properties("rest")
    # As it is by default, but for the time that a writer waits for a lock.
    return {
        "type": "sql",
        "uri": f"sqlite:///{home / 'catalog.db'}?timeout={_CATALOG_TIMEOUT_S}",
        "warehouse": str(home / "warehouse"),
    }


def _environment(servers: Servers, home: Path, catalog: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of k2: this machine's, without any K2_* but the round's."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("K2_")}
    return {
        **inherited,
        **_SETTINGS,
        "K2_HOME": str(home),
        "K2_KAFKA_BOOTSTRAP_SERVERS": servers.broker.bootstrap,
        "K2_SCHEMA_REGISTRY_URL": servers.registry.url,
        **{
            f"K2_CATALOG_{key.replace('.', '__').replace('-', '_').upper()}": value
            for key, value in catalog.items()
        },
    }
