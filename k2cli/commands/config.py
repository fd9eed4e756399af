"""`k2 config`: the settings in force, where they come from, and files to begin with."""

import json
from pathlib import Path
from typing import Annotated, Final

import typer

from k2cli.commands.config_files import docker_file, settings_file, toml_line
from k2cli.commands.options import HomeOpt, TextOrJson, TextOrJsonOpt, config_file, settings
from k2cli.commands.terminal import output
from k2cli.commands.terminal.streams import note
from k2cli.config import DEFAULT, Settings, settings_document
from k2cli.errors import ConfigError, UsageError
from k2cli.files import write_private

config_app = typer.Typer(help="Look at the settings, or begin with some.", no_args_is_help=True)
_COMPOSE: Final = Path("docker") / "compose.yml"


@config_app.command()
def show(
    origin: Annotated[
        bool, typer.Option("--origin", help="Say of each value where it comes from.")
    ] = False,
    fmt: TextOrJsonOpt = TextOrJson.TEXT,
    home: HomeOpt = None,
) -> None:
    """Show the settings in force as TOML, with secrets hidden.

    Example: k2 config show --origin
    """
    config = settings(home)
    document = settings_document(config)
    if fmt is TextOrJson.JSON:
        shown = _with_origins(config) if origin else json_settings(config)
        output.data(json.dumps(shown, ensure_ascii=False))
        return
    for name, own in own_settings(config).items():
        note = f"  # {_origin(config, name)}" if origin else ""
        output.data(f"# {name}: {own or 'none'}{note}")
    for section, values in document.items():
        output.data(f"\n[{section}]")
        for key, value in values.items():
            note = f"  # {_origin(config, f'{section}.{key}')}" if origin else ""
            output.data(toml_line(key, value) + note)


@config_app.command()
def path(home: HomeOpt = None) -> None:
    """Print where the config file is, or would be.

    Example: $EDITOR "$(k2 config path)"
    """
    file = config_file(home)
    output.data(str(file))
    if not file.exists():
        note("it does not exist; k2 config init writes it")


@config_app.command()
def init(
    cluster: Annotated[
        bool,
        typer.Option("--cluster", help="For Kafka, a schema registry and a REST catalog over S3."),
    ] = False,
    docker: Annotated[
        bool,
        typer.Option(
            "--docker", help="Instead, the .env of docker/compose.yml, with passwords made for you."
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Which file to write.",
            show_default="what k2 config path says; with --docker docker/.env, or .env",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    home: HomeOpt = None,
) -> None:
    """Write a config file in which every setting is explained, with its default.

    Only you can read the file, because it may come to hold secrets.

    Example: k2 config init
    """
    if cluster and docker:
        raise UsageError("--cluster and --docker write different files", hint="run it once each")
    if str(out) == "-":
        raise UsageError("-o takes the name of a file", hint="secrets are not for stdout")
    if docker:
        file = out or (_COMPOSE.parent if _COMPOSE.is_file() else Path()) / ".env"
        text = docker_file()
    else:
        file = out or config_file(home)
        text = settings_file(is_cluster=cluster)
    if out is None:
        _create_folder(file.parent)
    write_private(file, text, is_forced=force)
    note(f"wrote {file}")


def _create_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError(
            f"cannot create the folder {folder}: {exc.strerror}",
            hint="choose a folder you may write with --home, or name the file with -o",
        ) from exc


def own_settings(config: Settings) -> dict[str, str | None]:
    """Return what is set in no section: home, file and profile."""
    return {
        "home": str(config.home),
        "file": str(config.file) if config.file else None,
        "profile": config.profile,
    }


def json_settings(config: Settings) -> dict[str, object]:
    """Return all settings as one object; `home` in it is the folder, `home.shared` a setting."""
    sections = settings_document(config)
    home = {f"home.{key}": value for key, value in sections.pop("home").items()}
    return {**own_settings(config), **home, **sections}


def _with_origins(config: Settings) -> dict[str, dict[str, object]]:
    document = settings_document(config)
    own: dict[str, dict[str, object]] = {
        name: {"value": value, "origin": _origin(config, name)}
        for name, value in own_settings(config).items()
    }
    for key, value in document.pop("home").items():
        name = f"home.{key}"
        own[name] = {"value": value, "origin": _origin(config, name)}
    return own | {
        section: {
            key: {"value": value, "origin": _origin(config, f"{section}.{key}")}
            for key, value in values.items()
        }
        for section, values in document.items()
    }


def _origin(config: Settings, name: str) -> str:
    return config.origins.get(name, DEFAULT)
