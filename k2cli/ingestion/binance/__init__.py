"""Binance: venues (servers and streams), protocol (pure parsing), exchangeinfo (its symbols)."""
