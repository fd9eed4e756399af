"""Resident memory of `k2 stream` while millions of rows pass through it."""

import json

from processes import check_summary, simulated_exchange, stream_command, watched
from report import Aim, Line, Setup


def run(setup: Setup) -> list[Line]:
    """Watch one long stream: its peak, and whether the end is higher than the second quarter."""
    messages = 1_000_000 if setup.is_quick else 2_000_000
    with simulated_exchange() as url:
        seen = watched(stream_command(url, messages), home=setup.folder / "home")
    check_summary(json.loads(seen.stdout), messages)
    samples = seen.samples_mb
    quarter = len(samples) // 4
    return [
        Line(
            what=f"peak of streaming {messages:,} rows",
            value=seen.peak_mb,
            unit="MB",
            aim=Aim("value", "<=", 400),
            samples=[round(sample, 1) for sample in samples],
        ),
        Line(
            what="peak in the last quarter",
            value=max(samples[3 * quarter :]),
            unit="MB",
            reference=max(samples[quarter : 2 * quarter]),
            against="peak in the second quarter",
            aim=Aim("ratio", "<=", 1.1),
        ),
    ]
