"""`k2 stream` against an exchange that misbehaves; afterwards the table holds every trade once.

The simulated exchange trades on while it cuts, silences, skips and refuses, and the stream is
killed, stopped and restarted, some runs with a clock that jumps. `python -m soak` (see
`__main__.py`) plays as many rounds as fit into the time; a short one is in the suite
(`integration/test_soak.py`).
"""
