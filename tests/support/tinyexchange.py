"""A tiny exchange, unlike Binance: one market, subscriptions by message, symbols with a slash.

-> {"subscribe":["trades:BTC/USD"]}
-> {"unsubscribe":["trades:BTC/USD"]}
<- {"subscribed":1}
<- {"symbol":"BTC/USD","id":7}
<- {"error":"unknown symbol"}
<- {"goodbye":true}
"""

# ruff: noqa: ARG002

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from k2cli.ingestion.exchange import Exchange, Limits, Parsed, Parser, Venue, check_base
from k2cli.ingestion.symbols import Instrument
from k2cli.records import TRADES
from k2cli.rejects import Cause, Fault, Reject
from support.builders import batch_of, trade_row


class TinyVenue(Venue):
    def parse_symbol(self, text: str, home: Path | None = None) -> Instrument:
        base, _, quote = text.partition("/")
        return Instrument(text, base, quote)

    def stream_name(self, instrument: Instrument, channel: str) -> str:
        return f"{channel}:{instrument.symbol}"

    def stream_url(self, base: str, names: Sequence[str]) -> str:
        return f"{check_base(base)}/v2"

    def subscribe(self, names: Sequence[str]) -> Sequence[str]:
        return [json.dumps({"subscribe": names})]

    def change(self, added: Sequence[str], removed: Sequence[str]) -> Sequence[str]:
        kinds = {"unsubscribe": removed, "subscribe": added}
        return [json.dumps({kind: names}) for kind, names in kinds.items() if names]

    def open_parser(self, instruments: Sequence[Instrument], home: Path | None) -> Parser:
        return TinyParser()


class TinyParser:
    def add(self, instruments: Sequence[Instrument]) -> None:
        pass

    def parse(self, frames: Sequence[bytes], received_us: Sequence[int], *, first: int) -> Parsed:
        rows, rejects = [], []
        for number, frame in enumerate(frames):
            found = json.loads(frame)
            if "id" in found:
                symbol, trade_id = found["symbol"], found["id"]
                known = {"symbol": symbol, "exchange": "TINY", "source_sequence": trade_id}
                rows.append(trade_row(**known, trade_id=f"TINY-{trade_id}"))
            elif "error" in found:
                rejects.append(
                    Reject(
                        fault=Fault(reason=found["error"], cause=Cause.BAD_FRAME),
                        raw=frame,
                        position=first + number,
                        received_us=received_us[number],
                    )
                )
        return Parsed(rows=[(TRADES, batch_of(TRADES, rows))] if rows else [], rejects=rejects)


TINY_VENUE = TinyVenue(
    exchange="TINY",
    asset_class="crypto",
    urls=["wss://stream.tiny.example"],
    channels={"trades": "trades"},
    limits=Limits(streams=2, attempts=100, window_s=60),
    shutdown_notice=b'"goodbye"',
)
TINY = Exchange(
    name="tiny", title="Tiny", venues={"all": TINY_VENUE}, example="--symbols BTC/USD,ETH/USD"
)


class TinyServer:
    """Acknowledges subscriptions, then sends `frames`, or what they make of the subscription."""

    def __init__(
        self, *frames: str, answer: Callable[[int, list[str]], list[str]] | None = None
    ) -> None:
        self.answer = answer or (lambda _number, _names: list(frames))
        self.subscriptions: list[list[str]] = []
        self.paths: list[str | None] = []

    async def handle(self, connection: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            self.paths.append(connection.request.path if connection.request else None)
            names = json.loads(await connection.recv())["subscribe"]
            self.subscriptions.append(names)
            await connection.send(json.dumps({"subscribed": len(names)}))
            for frame in self.answer(len(self.subscriptions), names):
                await connection.send(frame)
            await connection.wait_closed()


def trade(symbol: str, number: int) -> str:
    return json.dumps({"symbol": symbol, "id": number})
