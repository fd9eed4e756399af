"""How streams are distributed over connections, and how open connections follow changes."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest

from k2cli.ingestion.binance.venues import VENUES
from k2cli.ingestion.subscriptions import Subscription, Subscriptions
from k2cli.ingestion.symbols import Market
from support.tinyexchange import TINY_VENUE

SPOT = VENUES[Market.SPOT]
BASES = ["wss://a.example", "wss://b.example"]


def names(count: int, first: int = 0) -> list[str]:
    return [f"s{number}usdt@trade" for number in range(first, first + count)]


def distributed(count: int) -> Subscriptions:
    subscriptions = Subscriptions(SPOT, BASES)
    subscriptions.change(names(count))
    return subscriptions


def sizes(subscriptions: Subscriptions) -> list[int]:
    return [each.streams for each in subscriptions.all]


def test_streams_are_split_by_the_limit_of_a_connection() -> None:
    subscriptions = distributed(450)
    assert sizes(subscriptions) == [200, 200, 50]
    (first, *_) = subscriptions.all
    assert list(first.names) == names(200)
    assert list(first.urls) == BASES
    assert all(url.endswith("s199usdt@trade&timeUnit=MICROSECOND") for url in first.urls.values())


def test_urls_stay_short_with_names_that_are_encoded() -> None:
    subscriptions = Subscriptions(SPOT, BASES)
    subscriptions.change(f"{'币' * 20}{number}usdt@trade" for number in range(300))
    assert sum(sizes(subscriptions)) == 300
    assert all(len(url) < 8000 for each in subscriptions.all for url in each.urls.values())


def test_10000_streams_are_distributed_quickly() -> None:
    assert sizes(distributed(10_000)) == [200] * 50


def test_streams_are_added_where_there_is_room() -> None:
    subscriptions = distributed(395)
    (fresh,) = subscriptions.change(names(7, 395), [])
    assert sizes(subscriptions) == [200, 200, 2]
    assert fresh is subscriptions.all[-1]
    assert subscriptions.change(names(2, 395)) == []  # they are there
    assert subscriptions.change(["x@trade"], names(150)) == []
    assert sizes(subscriptions) == [50, 200, 3]


def test_connection_without_streams_is_used_no_more() -> None:
    subscriptions = distributed(200)
    (first,) = subscriptions.all
    assert subscriptions.change([], names(200)) == []
    assert subscriptions.all == []
    assert first.names == ()
    (fresh,) = subscriptions.change(names(1), [])
    assert fresh is not first


def following(
    subscription: Subscription, *changes: Callable[[], object], pause_s: float = 0.05
) -> tuple[list[dict[str, object]], list[float]]:
    """The messages that a connection sends while its streams change, and when."""
    sent: list[dict[str, object]] = []
    times: list[float] = []

    async def run() -> None:
        def send(message: str) -> None:
            sent.append(json.loads(message))
            times.append(asyncio.get_running_loop().time())

        async with asyncio.timeout(30):
            follower = asyncio.create_task(subscription.follow(subscription.names, send))
            for change in changes:
                await asyncio.sleep(pause_s)
                change()
            await follower

    asyncio.run(run())
    return sent, times


FAST = replace(SPOT, limits=replace(SPOT.limits, messages_per_s=20.0))


def test_open_connection_follows_by_messages() -> None:
    subscription = Subscription(FAST, BASES, ["a@trade", "b@trade"])

    def swap(added: str, removed: str) -> None:
        subscription.add(added)
        subscription.remove([removed])

    sent, _ = following(
        subscription,
        lambda: subscription.add("币@trade"),
        lambda: subscription.remove(["a@trade", "other@trade"]),
        lambda: swap("c@trade", "b@trade"),
        lambda: swap("d@trade", "d@trade"),
        lambda: subscription.remove(["币@trade", "c@trade"]),  # ends it, without a message
        pause_s=0.2,
    )
    assert [(each["method"], each["params"]) for each in sent] == [
        ("SUBSCRIBE", ["币@trade"]),
        ("UNSUBSCRIBE", ["a@trade"]),
        ("UNSUBSCRIBE", ["b@trade"]),
        ("SUBSCRIBE", ["c@trade"]),
    ]


def test_changes_before_a_connection_was_open_are_made_up_for() -> None:
    subscription = Subscription(FAST, BASES, ["a@trade"])
    asked = subscription.names
    subscription.add("b@trade")
    sent: list[str] = []

    async def run() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await subscription.follow(asked, sent.append)

    asyncio.run(run())
    assert [json.loads(each)["params"] for each in sent] == [["b@trade"]]


def test_messages_keep_the_limit_of_the_exchange() -> None:
    subscription = Subscription(FAST, BASES, ["a@trade"])
    more = [f"{number}@trade" for number in range(150)]
    sent, times = following(
        subscription,
        lambda: [subscription.add(name) for name in more],
        lambda: subscription.remove(more[:120]),
        lambda: subscription.remove(subscription.names),
        pause_s=0.5,
    )
    counts = [(each["method"], len(each["params"])) for each in sent]  # type: ignore[arg-type]
    assert counts == [
        ("SUBSCRIBE", 100), ("SUBSCRIBE", 50), ("UNSUBSCRIBE", 100), ("UNSUBSCRIBE", 20),
    ]  # fmt: skip
    assert all(later - earlier > 0.045 for earlier, later in pairwise(times))


@pytest.mark.parametrize("market", list(Market))
def test_limits_of_the_markets_leave_room_for_pongs(market: Market) -> None:
    limit = 10 if market is Market.COINM else 5
    assert VENUES[market].limits.messages_per_s <= limit / 2


def test_other_exchange_changes_in_its_own_words() -> None:
    subscription = Subscription(TINY_VENUE, ["wss://tiny.example"], ["trades:A/USD"])
    assert subscription.messages == ['{"subscribe": ["trades:A/USD"]}']
    sent, _ = following(
        subscription,
        lambda: subscription.add("trades:B/USD"),
        lambda: subscription.remove(subscription.names),
    )
    assert sent == [{"subscribe": ["trades:B/USD"]}]
