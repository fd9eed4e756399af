"""`k2 config`: show the settings and their origins, and create config files."""

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

config_app = typer.Typer(help="Show settings, or create a config file.", no_args_is_help=True)
_COMPOSE: Final = Path("docker") / "compose.yml"


@config_app.command()
def show(
    origin: Annotated[
        bool, typer.Option("--origin", help="Show the origin of each value.")
    ] = False,
    fmt: TextOrJsonOpt = TextOrJson.TEXT,
    home: HomeOpt = None,
) -> None:
    """Show the effective settings as TOML, with secrets hidden.

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
    """Print the path of the config file, whether it exists or not.

    Example: $EDITOR "$(k2 config path)"
    """
    file = config_file(home)
    output.data(str(file))
    if not file.exists():
        note("it does not exist; create it with k2 config init")


@config_app.command()
def init(
    cluster: Annotated[
        bool,
        typer.Option(
            "--cluster",
            help="Write a file for Kafka, a schema registry and a REST catalog over S3.",
        ),
    ] = False,
    docker: Annotated[
        bool,
        typer.Option(
            "--docker",
            help="Write the .env of docker/compose.yml instead, with generated passwords.",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File to write.",
            show_default="the path from k2 config path; with --docker docker/.env, or .env",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    home: HomeOpt = None,
) -> None:
    """Write a config file that explains every setting and its default.

    Only you can read the file, because it may contain secrets.

    Example: k2 config init
    """
    if cluster and docker:
        raise UsageError("--cluster and --docker write different files", hint="run it once each")
    if str(out) == "-":
        raise UsageError("-o needs the name of a file", hint="secrets cannot be written to stdout")
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
            f"cannot create the directory {folder}: {exc.strerror}",
            hint="choose a writable directory with --home, or the file with -o",
        ) from exc


def own_settings(config: Settings) -> dict[str, str | None]:
    """Return the settings outside of sections: home, file and profile."""
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
