"""Binance: protocol (pure parsing), client (connections), simulator (the exchange, locally)."""
