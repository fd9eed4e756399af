"""`k2 config`: the settings in force, and where they come from."""

import json

import typer

from k2cli.commands import output
from k2cli.commands.options import HomeOpt, TextOrJson, TextOrJsonOpt, settings
from k2cli.config import FILE_NAME, settings_document

config_app = typer.Typer(help="Look at the settings.", no_args_is_help=True)


@config_app.command()
def show(fmt: TextOrJsonOpt = TextOrJson.TEXT, home: HomeOpt = None) -> None:
    """Show the settings in force as TOML, with secrets hidden.

    Example: k2 config show
    """
    config = settings(home)
    document = settings_document(config)
    if fmt is TextOrJson.JSON:
        output.data(json.dumps({"home": str(config.home), **document}))
        return
    output.data(f"# home: {config.home}\n# file: {config.file or 'none'}")
    for section, values in document.items():
        output.data(f"\n[{section}]")
        for key, value in values.items():
            name = key if key.isidentifier() else json.dumps(key)
            output.data(f"{name} = {json.dumps(value, ensure_ascii=False)}")


@config_app.command()
def path(home: HomeOpt = None) -> None:
    """Print where the config file is, or would be.

    Example: $EDITOR "$(k2 config path)"
    """
    config = settings(home)
    output.data(str(config.file or config.home / FILE_NAME))
    if config.file is None:
        output.note("it does not exist: the defaults and K2_* variables are in force")
