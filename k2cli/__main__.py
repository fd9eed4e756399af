"""Entry point of the `k2` script and of `python -m k2cli`."""

import sys

from k2cli.commands.streams import use_standard_streams


def main() -> None:
    """Run the command line."""
    use_standard_streams()

    from k2cli.commands.app import run  # noqa: PLC0415  its imports may already write

    sys.exit(run())


if __name__ == "__main__":
    main()
