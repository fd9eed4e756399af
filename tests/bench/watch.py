"""Run a command and write down its memory: `python watch.py RESULT.json COMMAND...`.

A process of its own, and a small one: the system counts the memory of the process that starts a
command into the command's own peak. Linux only, because of /proc.
"""

import json
import os
import sys
import time
from pathlib import Path

_EVERY_S = 0.05


def main() -> None:
    """Watch to the end, and exit as the command did."""
    result, *command = sys.argv[1:]
    started = time.perf_counter()
    pid = os.posix_spawnp(command[0], command, os.environ)
    samples: list[int] = []
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            break
        samples.append(_resident_kb(pid))
        time.sleep(_EVERY_S)
    found = {
        "took_s": time.perf_counter() - started,
        "peak_kb": usage.ru_maxrss,
        "samples_kb": samples,
    }
    Path(result).write_text(json.dumps(found), encoding="utf-8")
    sys.exit(abs(os.waitstatus_to_exitcode(status)))


def _resident_kb(pid: int) -> int:
    """Read VmRSS; a process that is just ending has none."""
    with Path(f"/proc/{pid}/status").open(encoding="utf-8") as lines:
        return next((int(line.split()[1]) for line in lines if line.startswith("VmRSS:")), 0)


if __name__ == "__main__":
    main()
