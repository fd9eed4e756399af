"""One round: a stream, an exchange that misbehaves, and the comparison at the end."""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Final, Protocol

from crashes.members import TIMEOUT_S, Run, Wrong, wait_for
from k2cli.config import load_settings
from k2cli.ingestion.symbols import Market
from k2cli.records import TRADES
from k2cli.simulator import Simulator, SimulatorOptions, running_simulator
from k2cli.storage.lake import open_lake
from soak.faults import NO_FAULTS, Plan, faults
from support.cluster import Cluster
from support.running import K2_COMMAND

SYMBOLS: Final = ("BTCUSDT", "ETHUSDT", "BNBUSDT")
_JUMPING: Final = (sys.executable, str(Path(__file__).with_name("jumping.py")))
_UNREACHABLE: Final = 5  # exit code of a run that never connected
_PONG_TIMEOUT_S: Final = 3.0
_REPORTED: Final = (
    *("gap", "restart_gap", "gap_filled", "gap_open", "backfill_paused", "disconnected"),
    *("rollover", "stale", "silent", "silent_stream", "reject", "breaker_opened"),
)

Ids = Mapping[str, Sequence[int]]  # by symbol


@dataclass(frozen=True, kw_only=True)
class Played:
    """What happened in a round."""

    faults: Sequence[str]
    ends: Sequence[str]  # of runs, and pauses of them
    trades: int
    unlisted: int
    settled_s: float
    events: Mapping[str, int]  # of all runs

    def __str__(self) -> str:
        reported = " ".join(f"{name}={self.events[name]}" for name in _REPORTED)
        return (
            f"{self.trades} trades, {self.unlisted} unlisted; {', '.join(self.faults)};"
            f" {', '.join(self.ends)}; {reported}; caught up in {self.settled_s:.0f} s"
        )


class Round:
    """A round in progress. Made by `open_round`."""

    def __init__(
        self, simulator: Simulator, cluster: Cluster, *, topic: str | None, chance: Random
    ) -> None:
        self.simulator = simulator
        self.cluster = cluster
        self.topic = topic  # None: the stream writes to the table
        self.chance = chance
        self.runs: list[Run] = []
        self.ends: list[str] = []

    @property
    def run(self) -> Run:
        """The current run of the stream."""
        return self.runs[-1]

    def start(self) -> None:
        """Start the stream, in some runs with a clock that jumps."""
        market = self.simulator.options.market
        routes = ("/public", "/market") if market is Market.USDM else ("",)
        key = {"K2_BINANCE_API_KEY": "soak"} if market is Market.USDM else {}
        to = ("--to", "table") if self.topic is None else ("--to", "kafka", "--topic", self.topic)
        self.runs.append(
            Run(
                *("stream", "binance", "--log-format", "json", *to),
                *(word for route in routes for word in ("--url", self.simulator.url + route)),
                *("--rest-url", self.simulator.rest_url, "--market", market.value),
                *("--symbols", ",".join(SYMBOLS)),
                *("--flush-interval", "500ms", "--stale-after", "4s", "--connect-timeout", "60s"),
                env={**self.cluster.env, **key},
                log=self.cluster.home.with_name(f"stream-{len(self.runs)}.log"),
                program=_JUMPING if self.chance.random() < 0.3 else K2_COMMAND,
            )
        )

    def wait(self, seconds: float) -> None:
        """Let the stream run, and restart it if it never reached the exchange."""
        until_s = time.monotonic() + seconds
        while (left_s := until_s - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left_s, 0.2))

    def wait_until(
        self, condition: Callable[[], bool], what: str, timeout_s: float = TIMEOUT_S
    ) -> None:
        """Wait until a condition is met while the stream runs."""

        def is_met() -> bool:
            self.check()
            return condition()

        wait_for(is_met, f"{what}: {self.run.log}", timeout_s)

    def check(self) -> None:
        """Fail if the stream ended by itself, unless it could not connect at its start."""
        if self.run.is_running:
            return
        code = self.run.process.returncode
        if code != _UNREACHABLE or self.run.count("connected"):
            raise Wrong(f"the stream ended: exit code {code}, {self.run.log}\n{self.run.tail()}")
        self.start()

    def end_run(self, how: str) -> None:
        """Kill, stop or terminate the stream, and start or continue it after a while."""
        self.check()
        self.ends.append(how)
        match how:
            case "SIGSTOP":
                self.run.pause()
                time.sleep(_PONG_TIMEOUT_S * self.chance.uniform(0.3, 1.5))
                self.run.go_on()
                return
            case "SIGKILL":
                self.run.kill()
            case _:
                self.run.terminate()
        time.sleep(self.chance.uniform(0, 2))
        self.start()
        self.wait_until_connected()

    def wait_until_connected(self) -> None:
        """Wait until the stream has reached the exchange, whatever faults that has."""
        self.wait_until(lambda: self.run.count("connected") > 0, "it never connected")

    def stored(self) -> dict[str, list[int]]:
        """Return the ids in the table, sorted; with Kafka, after consuming the topic."""
        if self.topic is not None:
            self.cluster.consume("--topic", self.topic)
        with open_lake(load_settings(self.cluster.env)) as lake:
            scan = lake.open(TRADES).iceberg.scan(selected_fields=("symbol", "source_sequence"))
            rows = scan.to_arrow()
        ids: dict[str, list[int]] = {symbol: [] for symbol in SYMBOLS}
        pairs = zip(*(column.to_pylist() for column in rows.columns), strict=True)
        for symbol, number in pairs:
            ids.setdefault(symbol, []).append(number)
        return {symbol: sorted(some) for symbol, some in ids.items()}

    def open_gaps(self) -> dict[str, list[tuple[int, int, int]]]:
        """Return the gaps that k2 lists: their first and last id, and how many are missing."""
        listed = self.cluster.run("query", "gaps", "--format", "json")
        if listed.exit_code != 0:
            raise Wrong(f"k2 query gaps failed:\n{listed.stderr}")
        gaps: dict[str, list[tuple[int, int, int]]] = {}
        for row in json.loads(listed.stdout):
            gap = (row["first_id"], row["last_id"], row["missing"])
            gaps.setdefault(row["symbol"], []).append(gap)
        return gaps

    def settle(self, timeout_s: float) -> tuple[Ids, float]:
        """End the faults and then the market; return the ids once the stream has caught up."""
        self.simulator.change(**{**NO_FAULTS, "drop_after": 1})  # ends connections with a fault
        time.sleep(0.5)
        self.simulator.change(**NO_FAULTS)
        started_s = time.monotonic()
        marks = self.simulator.published()

        def is_streaming() -> bool:
            stored = self.stored()
            return all(stored[each] and stored[each][-1] >= marks[each].stop for each in SYMBOLS)

        # From here on ids arrive without a fault, so every hole has an end.
        self.wait_until(is_streaming, "no new trades are stored", timeout_s)
        self.simulator.stop_market()
        published = self.simulator.published()
        problems: list[str] = []
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            self.check()
            stored = self.stored()
            problems = differences(stored, published, self.simulator.unlisted)
            if not problems:
                return stored, time.monotonic() - started_s
            time.sleep(0.5)
        raise Wrong("\n".join([*problems, f"last log: {self.run.log}", self.run.tail()]))

    def close(self) -> None:
        """Leave no process behind."""
        if self.runs and self.run.is_running:
            self.run.kill()


def differences(stored: Ids, published: Mapping[str, range], unlisted: "Unlisted") -> list[str]:
    """Describe what is wrong with the stored ids: from each symbol's first stored id on."""
    problems = [f"{symbol} was never asked for" for symbol in stored.keys() - published.keys()]
    for symbol in SYMBOLS:
        ids, exchange = stored[symbol], published[symbol]
        if not ids:
            problems.append(f"{symbol}: nothing is stored")
            continue
        range_ = range(ids[0], exchange.stop)
        expected = set(range_) - set(unlisted(range_))
        lost, odd = sorted(expected - set(ids)), sorted(set(ids) - expected)
        double = [number for number, count in Counter(ids).items() if count > 1]
        for what, some in (("lost", lost), ("never published", odd), ("stored twice", double)):
            if some:
                problems.append(f"{symbol}: {len(some)} ids are {what}: {some[:5]} .. {some[-1]}")
    return problems


def gap_differences(
    gaps: Mapping[str, Sequence[tuple[int, int, int]]], stored: Ids, unlisted: "Unlisted"
) -> list[str]:
    """Describe what is wrong with the open gaps: they hold exactly the ids that REST refuses."""
    problems = [f"{symbol}: gaps of an unknown symbol" for symbol in gaps.keys() - set(SYMBOLS)]
    for symbol in SYMBOLS:
        left = set(unlisted(range(stored[symbol][0], stored[symbol][-1])))
        for first, last, missing in gaps.get(symbol, ()):
            inside = {number for number in left if first <= number <= last}
            if len(inside) != missing:
                problems.append(f"{symbol}: {first}..{last} lacks {len(inside)} ids, not {missing}")
            left -= inside
        if left:
            problems.append(f"{symbol}: {len(left)} ids are in no open gap: {sorted(left)[:5]}")
    return problems


class Unlisted(Protocol):
    """Returns those of some ids that the exchange neither streams nor serves."""

    def __call__(self, ids: range, /) -> list[int]: ...


def play(  # noqa: PLR0913
    cluster: Cluster,
    plan: Plan,
    *,
    seconds: float,
    seed: int,
    number: int = 0,
    topic: str | None = None,
    market: Market = Market.SPOT,
) -> Played:
    """Play a round, which `seed` and `number` determine apart from the machine's own timing.

    The tables of the cluster's home must not hold trades; the logs are beside the home. With a
    topic, the stream produces to it, and the table is filled from it.

    Raises:
        Wrong: a trade is lost or double, a gap is missing or too many, or the stream ended.
    """
    chance = Random(f"{seed}/{number}")
    with open_round(cluster, plan, chance=chance, topic=topic, market=market) as game:
        game.wait_until_connected()
        begun = game.simulator.published()
        game.wait_until(lambda: all(game.stored().values()), "nothing is stored")
        played = _misbehave(game, plan, seconds)
        stored, settled_s = game.settle(plan.settle_s)
        late = [each for each in SYMBOLS if stored[each][0] > begun[each].stop + 2 * plan.rate]
        if late:
            raise Wrong(f"the first trades of {late} are missing")
        game.run.terminate()
        problems = differences(game.stored(), game.simulator.published(), game.simulator.unlisted)
        problems += gap_differences(game.open_gaps(), stored, game.simulator.unlisted)
        if problems:
            raise Wrong("\n".join(problems))
        unlisted = game.simulator.unlisted
        return Played(
            faults=played,
            ends=game.ends,
            trades=sum(map(len, stored.values())),
            unlisted=sum(len(unlisted(range(ids[0], ids[-1]))) for ids in stored.values()),
            settled_s=settled_s,
            events=Counter(event["event"] for run in game.runs for event in run.events()),
        )


def _misbehave(game: Round, plan: Plan, seconds: float) -> list[str]:
    """Let one fault follow another until the time is over, each at least once."""
    by_name = faults(plan.rate * len(SYMBOLS))
    names = game.chance.sample(plan.faults, len(plan.faults))
    ends = cycle(game.chance.sample(("SIGKILL", "SIGSTOP", "SIGTERM", ""), 4))
    played: list[str] = []
    until_s = time.monotonic() + seconds
    for name, end in zip(cycle(names), ends, strict=False):
        game.simulator.change(**{**NO_FAULTS, **by_name[name]})
        game.wait(game.chance.uniform(*plan.phase_s))
        played.append(name)
        if end:
            game.end_run(end)
        if time.monotonic() > until_s and len(played) >= len(names):
            break
    return played


@contextmanager
def open_round(
    cluster: Cluster, plan: Plan, *, chance: Random, topic: str | None, market: Market
) -> Iterator[Round]:
    """Open an exchange that behaves, and a stream of its symbols."""
    options = SimulatorOptions(
        market=market,
        symbols=SYMBOLS,
        seed=chance.getrandbits(16),
        live_rate=plan.rate,
        unlisted_every=plan.unlisted_every,
        ping_interval_s=1.0,
        pong_timeout_s=_PONG_TIMEOUT_S,
        shutdown_grace_s=2.0,
    )
    with open_lake(load_settings(cluster.env), create=True):
        pass
    with running_simulator(options) as simulator:
        game = Round(simulator, cluster, topic=topic, chance=chance)
        try:
            game.start()
            yield game
        finally:
            game.close()
