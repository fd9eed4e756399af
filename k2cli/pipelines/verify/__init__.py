"""Verify the trades of a day against the exchange's dump or REST API, and load what is missing."""
