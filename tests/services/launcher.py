"""Become another program that the kernel kills when the process that started this one ends.

`python launcher.py PARENT PROGRAM ARGUMENT...`, with the process id of the parent. It is a program
instead of a `preexec_fn`, which must not be used where threads run. Linux only; elsewhere the
program simply runs.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, program = int(sys.argv[1]), sys.argv[2]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the call, so nobody would tell
            sys.exit("the starting process is gone")
    os.execv(program, sys.argv[2:])


main()
