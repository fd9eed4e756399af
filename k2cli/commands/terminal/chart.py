"""Charts drawn in the terminal. Prices become floats here, and only here, to be drawn."""

import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import pyarrow as pa

_HEIGHT: Final = 14
_PRICES: Final = ("open", "high", "low", "close")


def candles(bars: "pa.Table", *, title: str, width: int) -> str:
    """Draw one symbol's bars (columns minute, open, high, low, close) as candlesticks.

    Colours only if stdout is a terminal. Returns lines of at most `width` characters.
    """
    import plotext

    figure = plotext.figure
    figure.clear()
    figure.plot_size(width, _HEIGHT)
    figure.title(title)
    figure.date().activate(form="%H:%M", zone=0)
    data = {name: [float(x) for x in bars[name].to_pylist()] for name in _PRICES}
    data["date"] = [minute.timestamp() + 1 for minute in bars["minute"].to_pylist()]
    figure.draw(figure.candlestick(data))
    drawn: str = figure.build().string()
    return drawn if sys.stdout.isatty() else plotext.uncolorize(drawn)
