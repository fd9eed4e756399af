"""Every shared option as an Annotated type, declared once."""

import os
import re
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, TypeVar

import typer

from k2cli.commands.profile import chosen_profile
from k2cli.commands.terminal.output import Summary
from k2cli.config import Settings, config_path, load_settings, parse_duration_s, parse_size_bytes
from k2cli.errors import ConfigError, UsageError
from k2cli.files import protect_home, refuse_dangling_link
from k2cli.kinds import KindName
from k2cli.redaction import remember_secrets

Command = TypeVar("Command", bound=Callable[..., object])

GROUP: Final = "k2-iceberg-writer"  # of the consumers that write the tables
_LAST_PORT: Final = 65535


def each_kind(app: typer.Typer, text: str) -> Callable[[Command], Command]:
    """Register a function as the command of every record kind; its help has `{kind}` replaced."""

    def register(command: Command) -> Command:
        for kind in KindName:
            app.command(kind.value, help=text.format(kind=kind.value))(command)
        return command

    return register


HomeOpt = Annotated[
    Path | None,
    typer.Option(
        "--home",
        help="Folder of the embedded tables and of k2.toml.",
        show_default="$K2_HOME or ~/.k2",
    ),
]

TzOpt = Annotated[
    str | None,
    typer.Option(
        "--tz",
        metavar="ZONE",
        help="Write times in this zone, with their offsets: an IANA name, or local. Times in "
        "options and in SQL stay UTC unless they have an offset.",
        show_default="UTC, or query.timezone",
    ),
]
LayoutOpt = Annotated[
    str,
    typer.Option(
        "--layout",
        "-l",
        help="Layout: a name from `k2 load layouts`, or a TOML file.",
        show_default=False,
    ),
]
LimitOpt = Annotated[
    int | None, typer.Option("--limit", "-n", min=1, max=2**63 - 1, help="Maximum number of rows.")
]
ColumnsOpt = Annotated[
    list[str] | None,
    typer.Option("--columns", "-c", help="Only these columns, in this order, comma-separated."),
]


def checked_file(path: Path | None) -> Path | None:
    """Refuse a dangling link; a callback of options."""
    if path is not None:
        refuse_dangling_link(path)
    return path


class TextOrJson(StrEnum):
    """Output format of a description."""

    TEXT = "text"
    JSON = "json"


TextOrJsonOpt = Annotated[
    TextOrJson, typer.Option("--format", "-f", help="Output format: text for people, or JSON.")
]


SummaryOpt = Annotated[
    Summary,
    typer.Option(
        "--summary",
        help="Summary at the end: a line on stderr, or a JSON object on stdout "
        "(on stderr with --to stdout).",
    ),
]


KafkaOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--kafka-option",
        help="Any librdkafka setting, overriding section kafka: "
        "bootstrap.servers=HOST:9092. Repeatable.",
    ),
]

RegistryOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--registry-option",
        help="Any setting of the registry's client, overriding section schema_registry: "
        "url=http://HOST:8081. Repeatable.",
    ),
]
TopicOpt = Annotated[
    str | None,
    typer.Option(
        "--topic",
        "-t",
        help="Topic for all rows, with --to kafka.",
        show_default=f"market.{{asset class}}.{{{' or '.join(KindName)}}}",
    ),
]
ReplicationOpt = Annotated[
    int | None,
    typer.Option(
        "--replication",
        min=1,
        help="Number of brokers that store each record.",
        show_default="the brokers' default",
    ),
]

AutoRegisterOpt = Annotated[
    bool,
    typer.Option(
        "--auto-register/--no-auto-register",
        help="Register k2's schema if the registry does not have it yet, with --to kafka.",
    ),
]


class Address(NamedTuple):
    """A host and a port to listen on."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Parse HOST:PORT; without a host it is this machine."""
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > _LAST_PORT:
        raise ValueError(f"{text!r} is not HOST:PORT, such as 127.0.0.1:9091 or :9091")
    return Address(host.strip("[]") or "127.0.0.1", int(port))


MetricsOpt = Annotated[
    Address | None,
    typer.Option(
        "--metrics",
        help="Serve metrics for Prometheus on HOST:PORT, or on this machine's :PORT, while it "
        "runs; 0 chooses a free port.",
        parser=parse_address,
        metavar="HOST:PORT",
    ),
]


YesOpt = Annotated[
    bool,
    typer.Option(
        "--yes", "-y", help="Do not ask for confirmation; required if stdin is not a terminal."
    ),
]


def dry_run_option(shown: str) -> Any:
    """Declare --dry-run, which shows this and changes nothing."""
    return typer.Option("--dry-run", help=f"Show {shown}.")


class Order(StrEnum):
    """The order by time."""

    ASC = "asc"
    DESC = "desc"


OrderOpt = Annotated[Order, typer.Option("--order", help="Order by time: asc is oldest first.")]


# For typer.Option(..., **DURATION): a time such as 500ms, 60s, 15m, 6h or 7d, in seconds.
DURATION: Final[dict[str, Any]] = {"parser": parse_duration_s, "metavar": "DURATION"}


SIZE: Final[dict[str, Any]] = {"parser": parse_size_bytes, "metavar": "SIZE"}

MaxRejectBytesOpt = Annotated[
    int | None,
    typer.Option(
        "--max-reject-bytes",
        help="Stop with exit code 6 if the rejects file is larger than this.",
        show_default="1GB",
        **SIZE,
    ),
]


def rejects_option(what: str, name: str) -> Any:
    """Declare --rejects: the file for `what`, by default of this name in the home folder."""
    return typer.Option(
        "--rejects",
        help=f"File for {what}.",
        show_default=f"rejects/{name}.ndjson in the home folder",
        callback=checked_file,
    )


def _timeout_option(default: str) -> Any:
    return typer.Option(
        "--timeout",
        help="Give up if a server does not answer within this time.",
        show_default=default,
        **DURATION,
    )


TIMEOUT_S: Final = 10.0
TimeoutOpt = Annotated[float | None, _timeout_option("10s")]
SHORT_TIMEOUT_S: Final = 5.0
ShortTimeoutOpt = Annotated[float | None, _timeout_option("5s")]


def settings(home: Path | None = None) -> Settings:
    """Read the settings of this run; only this and `config_file` read the environment."""
    config = load_settings(os.environ, home=home, profile=chosen_profile.get())
    proxies = {key: value for key, value in os.environ.items() if key.lower().endswith("_proxy")}
    for section in (config.catalog, config.kafka, config.schema_registry, proxies):
        remember_secrets(section)
    remember_secrets({"api_key": config.binance.api_key or ""})
    protect_home(
        config.home,
        is_shared=config.access.shared,
        is_store=not {"uri", "type", "warehouse"} & config.catalog.keys(),
    )
    return config


def output_zone(chosen: str | None, config: Settings) -> str:
    """Return the zone of a query's times: from --tz, else from the settings.

    Raises:
        UsageError: --tz is not a time zone.
        ConfigError: query.timezone is not a time zone.
    """
    from k2cli.zones import resolve_zone

    if chosen is not None:
        return resolve_zone(chosen, env=os.environ)
    try:
        return resolve_zone(config.query.timezone, env=os.environ, what="query.timezone")
    except UsageError as exc:
        raise ConfigError(str(exc), hint=exc.hint) from exc


def config_file(home: Path | None = None) -> Path:
    """Return the path of the config file, whether it exists or not."""
    return config_path(os.environ, home=home)


def key_values(values: list[str] | None, option: str) -> dict[str, str]:
    """Parse a repeated KEY=VALUE option."""
    pairs = [value.partition("=") for value in values or []]
    for key, sign, _ in pairs:
        if not key or not sign:
            name = re.split(r"[^\w.\-]", key, maxsplit=1)[0]  # the rest may be a secret
            raise typer.BadParameter(f"{name!r} is not KEY=VALUE", param_hint=option)
    found = {key: value for key, _, value in pairs}
    remember_secrets(found)
    return found
