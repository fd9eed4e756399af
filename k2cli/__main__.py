"""Entry point of the `k2` script and of `python -m k2cli`."""

from k2cli.commands.app import app
from k2cli.commands.lossy import use_lossy_stderr


def main() -> None:
    """Run the command line."""
    use_lossy_stderr()
    app(prog_name="k2")


if __name__ == "__main__":
    main()
