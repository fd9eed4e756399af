"""Rounds of faults against `k2 consume`; afterwards the table holds every record exactly once.

Processes are killed at random moments and at chosen points inside a commit, stopped for so long
that the group gives their partitions to others, started and ended; brokers, registry and catalog
go away and come back. `python -m crashes` (see `__main__.py`) plays as many rounds as wanted; a
few of them are in the suite (`integration/test_crashes.py`).
"""
