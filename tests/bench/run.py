"""Run the benchmarks: figures and ratios on stdout, everything into a JSON file.

    python tests/bench/run.py                  all of them, a quarter of an hour
    python tests/bench/run.py --quick          smaller, some minutes
    python tests/bench/run.py parse startup    only these

Every figure stands beside a reference that was measured in the same run, in turns with it:
absolute figures depend on the machine, ratios hardly. An aim that is missed is shown and fails
nothing. The exit code is 1 when a benchmark cannot run, or its rows are wrong.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

import backfill
import codec
import commits
import compact
import fill
import kafka
import load
import memory
import parse
import query
import startup
import stream
from processes import Failed
from report import Line, Result, Setup, as_json, show

from k2cli.errors import K2Error

BENCHMARKS: Final[Mapping[str, Callable[[Setup], Iterable[Line]]]] = {
    "startup": startup.run,
    "parse": parse.run,
    "stream": stream.run,
    "memory": memory.run,
    "query": query.run,
    "load": load.run,
    "commits": commits.run,
    "compact": compact.run,
    "backfill": backfill.run,
    "fill": fill.run,
    "codec": codec.run,
    "kafka": kafka.run,
}


def main() -> None:
    """Run what the command line names."""
    args = _arguments()
    results = []
    for name in args.names or BENCHMARKS:
        results.append(_run(name, is_quick=args.quick, days=args.days))
        show(results[-1:])
        document = as_json(results, is_quick=args.quick)
        args.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    if len(results) > 1:
        show(results)
    print(f"written to {args.json}")
    sys.exit(any(result.failure for result in results))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure k2 against references on this machine.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--quick", action="store_true", help="smaller, some minutes")
    parser.add_argument("--days", type=int, help="of the backfill: files of each symbol")
    parser.add_argument("--json", type=Path, default=Path("bench-results.json"), metavar="FILE")
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in BENCHMARKS]:
        parser.error(f"no such benchmark: {', '.join(unknown)}")
    return args


def _run(name: str, *, is_quick: bool, days: int | None) -> Result:
    """Run one benchmark; what it found before it failed counts."""
    print(f"{name} ...", file=sys.stderr, flush=True)
    started = time.perf_counter()
    lines: list[Line] = []
    failure = ""
    with tempfile.TemporaryDirectory(prefix=f"k2-bench-{name}-") as folder:
        try:
            setup = Setup(is_quick=is_quick, folder=Path(folder), days=days)
            lines.extend(BENCHMARKS[name](setup))
        except (Failed, K2Error) as exc:
            failure = f"{type(exc).__name__}: {exc}"
            print(f"{name}: {failure}", file=sys.stderr)
    took_s = time.perf_counter() - started
    return Result(name=name, took_s=took_s, lines=lines, failure=failure)


if __name__ == "__main__":
    main()
