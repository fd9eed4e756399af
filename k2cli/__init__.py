"""k2: stream and load market data into an Iceberg lakehouse, and query it.

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
    """Open the lake of the settings, to query its tables.

    The settings are those of the commands: K2_* variables, k2.toml, and a profile. `home` overrides
    K2_HOME, the folder of the embedded tables. Close it, or use it in a `with`.

    Raises:
        k2cli.errors.NotFound: no tables exist yet.
        k2cli.errors.ConfigError: a setting is wrong.
        k2cli.errors.Unavailable: the catalog does not answer.
    """
    from k2cli.answers import open_reader  # noqa: PLC0415  heavy

    return open_reader(home, profile=profile)
