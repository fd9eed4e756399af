"""Every shared option as an Annotated type, declared once."""

import os
from pathlib import Path
from typing import Annotated

import typer

from k2cli.config import Settings, load_settings

HomeOpt = Annotated[
    Path | None,
    typer.Option(
        "--home",
        help="Folder of the embedded tables and of k2.toml [default: $K2_HOME or ~/.k2].",
        show_default=False,
    ),
]


def settings(home: Path | None = None) -> Settings:
    """Read the settings of this run; the one place that looks at the environment."""
    env = dict(os.environ)
    if home is not None:
        env["K2_HOME"] = str(home)
    return load_settings(env)


def split_commas(values: list[str] | None) -> list[str]:
    """Flatten an option that is repeatable and takes comma lists; order kept, repeats dropped."""
    words = [word.strip() for value in values or [] for word in value.split(",")]
    return list(dict.fromkeys(word for word in words if word))
