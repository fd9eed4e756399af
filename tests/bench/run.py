"""Run the benchmarks: figures and ratios on stdout, everything into a JSON file.

    python tests/bench/run.py                  all of them, some ten minutes
    python tests/bench/run.py --quick          smaller, about a minute
    python tests/bench/run.py parse startup    only these

Every figure stands beside a reference that was measured in the same run, in turns with it:
absolute figures depend on the machine, ratios hardly. An aim that is missed is shown and fails
nothing. A benchmark that cannot run, or whose rows are wrong, ends the run with a traceback.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import commits
import memory
import parse
import query
import startup
import stream
from report import Line, Result, Setup, as_json, show

BENCHMARKS: Final[Mapping[str, Callable[[Setup], Sequence[Line]]]] = {
    "startup": startup.run,
    "parse": parse.run,
    "stream": stream.run,
    "memory": memory.run,
    "query": query.run,
    "commits": commits.run,
}


def main() -> None:
    """Run what the command line names."""
    args = _arguments()
    results: list[Result] = []
    try:
        for name in args.names or BENCHMARKS:
            results.append(_run(name, is_quick=args.quick))
            show(results[-1:])
    finally:
        if len(results) > 1:
            show(results)
        document = as_json(results, is_quick=args.quick)
        args.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        print(f"written to {args.json}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure k2 against references on this machine.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--quick", action="store_true", help="smaller, within about a minute")
    parser.add_argument("--json", type=Path, default=Path("bench-results.json"), metavar="FILE")
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in BENCHMARKS]:
        parser.error(f"no such benchmark: {', '.join(unknown)}")
    return args


def _run(name: str, *, is_quick: bool) -> Result:
    print(f"{name} ...", file=sys.stderr, flush=True)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix=f"k2-bench-{name}-") as folder:
        lines = BENCHMARKS[name](Setup(is_quick=is_quick, folder=Path(folder)))
    return Result(name=name, took_s=time.perf_counter() - started, lines=lines)


if __name__ == "__main__":
    main()
