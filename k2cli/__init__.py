"""k2: market data from exchanges and files into a lakehouse, and answers out of it."""

__version__ = "0.1.0"
