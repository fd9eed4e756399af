"""k2: market data from exchanges and files into a lakehouse, and answers out of it.

    import k2cli

    with k2cli.open_lake() as lake:
        trades = lake.trades(symbol="BTCUSDT", start="-1d")
        print(trades.polars())
        trades.write("btc.parquet")

Nothing heavy is loaded before a lake is opened.
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from k2cli.answers import LakeReader

__all__ = ["__version__", "open_lake"]
__version__ = "0.1.0"


def open_lake(
    home: str | os.PathLike[str] | None = None, *, profile: str | None = None
) -> "LakeReader":
    """Open the lake that the settings name, to ask questions about its tables.

    The settings are those of the commands: K2_* variables, k2.toml, and a profile of it. `home` is
    the folder of the embedded tables, instead of K2_HOME. To be closed: use it in a `with`.

    Raises:
        k2cli.errors.NotFound: there are no tables yet.
        k2cli.errors.ConfigError: a setting is wrong.
        k2cli.errors.Unavailable: the catalog does not answer.
    """
    from k2cli.answers import open_reader  # noqa: PLC0415  heavy

    return open_reader(home, profile=profile)
