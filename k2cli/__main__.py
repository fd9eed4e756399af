"""Entry point of the `k2` script and of `python -m k2cli`."""

import os
import sys


def main() -> None:
    """Run the command line, or complete one for a shell."""
    if instruction := os.environ.get("_K2_COMPLETE"):
        from k2cli.completion.shell import complete  # noqa: PLC0415

        if complete(instruction):
            return
    from k2cli.commands.terminal.streams import use_standard_streams  # noqa: PLC0415
    from k2cli.startup import leave_out_pandas  # noqa: PLC0415

    leave_out_pandas()
    use_standard_streams()
    # Importing the commands takes ten times as long as completing one, and may already write.
    from k2cli.commands.app import run  # noqa: PLC0415

    sys.exit(run())


if __name__ == "__main__":
    main()
