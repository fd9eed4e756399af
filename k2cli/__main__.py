"""Entry point of the `k2` script and of `python -m k2cli`."""

import os


def main() -> None:
    """Run the command line, or answer a shell that completes one."""
    if instruction := os.environ.get("_K2_COMPLETE"):
        from k2cli.completion.shell import complete  # noqa: PLC0415

        if complete(instruction):
            return
    # Importing the commands takes ten times as long as completing one.
    from k2cli.commands.app import app  # noqa: PLC0415
    from k2cli.commands.lossy import use_lossy_stderr  # noqa: PLC0415

    use_lossy_stderr()
    app(prog_name="k2")


if __name__ == "__main__":
    main()
