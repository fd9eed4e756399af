"""Settings: defaults < config file < K2_* variables < options, read once and passed down.

The file is TOML, `$K2_HOME/k2.toml` or wherever K2_CONFIG points:

    [table]
    keep_for = "6h"

A variable is named after section and key: K2_TABLE_KEEP_FOR=6h. Three sections are handed on as
they are: [catalog] to pyiceberg, [kafka] to librdkafka, [schema_registry] to the registry's
client. In their variables `_` stands for a dot: K2_KAFKA_BOOTSTRAP_SERVERS is
`bootstrap.servers`. Those of the catalog are as pyiceberg itself has them, `__` for a dot and `_`
for a dash: K2_CATALOG_S3__ACCESS_KEY_ID is `s3.access-key-id`.
"""

import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import msgspec

from k2cli.errors import ConfigError

FILE_NAME: Final = "k2.toml"
_SECRET = re.compile(
    r"secret|password|token|credential|access[-_.]?key|api[-_.]?key|user[-_.]info|ssl[-_.]key",
    re.IGNORECASE,
)
_URL_PASSWORD = re.compile(r"(?<=://)([^/@:\s]*):([^/@\s]+)@")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNIT_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration_s(text: str) -> float:
    """Turn `500ms`, `60s`, `15m`, `6h` or `7d` into seconds.

    Raises:
        ValueError: the text is not a number with one of these units.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a duration such as 500ms, 60s, 15m, 6h or 7d")
    return float(match[1]) * _UNIT_S[match[2]]


class Duration(float):
    """Seconds, written in settings as `60s` or `15m`."""


PositiveInt = Annotated[int, msgspec.Meta(ge=1)]


class _Section(msgspec.Struct, frozen=True):
    pass


S = TypeVar("S", bound=_Section)


class TableSettings(_Section, frozen=True, kw_only=True):
    """How long a table's past is kept. A snapshot stays if either rule keeps it.

    Every snapshot kept makes every commit a little dearer: some 0.4 ms each.
    """

    keep_snapshots: PositiveInt = 20
    keep_for: Duration = Duration(0)


class StreamSettings(_Section, frozen=True, kw_only=True):
    """When a stream commits, and when it takes a connection for dead."""

    flush_rows: PositiveInt = 100_000
    flush_interval: Duration = Duration(10)
    stale_after: Duration = Duration(60)
    connect_timeout: Duration = Duration(10)


class QuerySettings(_Section, frozen=True, kw_only=True):
    """What a query may use; beyond the memory limit DuckDB spills to disk."""

    memory_limit: str = "2GB"
    threads: PositiveInt | None = None


class Settings(_Section, frozen=True, kw_only=True):
    """All settings of one run."""

    home: Path
    file: Path | None = None  # the config file that was read
    catalog: Mapping[str, str] = {}
    kafka: Mapping[str, str] = {}  # as librdkafka names them
    schema_registry: Mapping[str, str] = {}  # as confluent_kafka's SchemaRegistryClient names them
    table: TableSettings = TableSettings()
    stream: StreamSettings = StreamSettings()
    query: QuerySettings = QuerySettings()


_SECTIONS: Final[Mapping[str, type[_Section]]] = {
    "table": TableSettings,
    "stream": StreamSettings,
    "query": QuerySettings,
}
_OPEN_SECTIONS: Final = ("catalog", "kafka", "schema_registry")  # any key, handed on
_UNDERSCORED: Final = ("log_level", "ssl_ca", "ssl_certificate", "ssl_key")  # of librdkafka


def load_settings(env: Mapping[str, str]) -> Settings:
    """Merge defaults, config file and K2_* variables.

    Raises:
        ConfigError: an unknown key or a wrong value; the message names the key and its origin.
    """
    home = Path(env.get("K2_HOME") or "~/.k2").expanduser().absolute()
    path = Path(env["K2_CONFIG"]).expanduser() if env.get("K2_CONFIG") else home / FILE_NAME
    raw: dict[str, dict[str, Any]] = {name: {} for name in (*_OPEN_SECTIONS, *_SECTIONS)}
    origin: dict[str, str] = {}
    is_required = bool(env.get("K2_CONFIG"))
    found = _merge_file(raw, origin, path, is_required=is_required)
    _merge_env(raw, origin, env)
    return Settings(
        home=home,
        file=path if found else None,
        **{
            name: {key: _text(value) for key, value in raw[name].items()} for name in _OPEN_SECTIONS
        },
        table=_section(TableSettings, "table", raw, origin),
        stream=_section(StreamSettings, "stream", raw, origin),
        query=_section(QuerySettings, "query", raw, origin),
    )


def _merge_file(
    raw: dict[str, dict[str, Any]], origin: dict[str, str], path: Path, *, is_required: bool
) -> bool:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as exc:
        if is_required:
            raise ConfigError(f"config file {path} does not exist", hint="unset K2_CONFIG") from exc
        return False
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigError(f"config file {path} cannot be read: {exc}") from exc
    for section, values in document.items():
        _check_known(section, raw, f"section [{section}] in {path}")
        if not isinstance(values, dict):
            raise ConfigError(f"{section} in {path} is not a section: write [{section}]")
        is_open = section in _OPEN_SECTIONS
        for key, value in (_flat(values) if is_open else values).items():
            if not is_open:
                _check_known(
                    key, _SECTIONS[section].__struct_fields__, f"key {section}.{key} in {path}"
                )
            raw[section][key] = value
            origin[f"{section}.{key}"] = str(path)
    return True


def _merge_env(
    raw: dict[str, dict[str, Any]], origin: dict[str, str], env: Mapping[str, str]
) -> None:
    known = [
        f"K2_{section}_{key}".upper()
        for section, cls in _SECTIONS.items()
        for key in cls.__struct_fields__
    ]
    for name, value in env.items():
        if not name.startswith("K2_") or name in ("K2_HOME", "K2_CONFIG"):
            continue
        rest = name.removeprefix("K2_").lower()
        section = next((each for each in _OPEN_SECTIONS if rest.startswith(f"{each}_")), "")
        if section:
            key = _open_key(section, rest.removeprefix(f"{section}_"))
        else:
            _check_known(name, [*known, "K2_HOME", "K2_CONFIG"], f"variable {name}")
            section, _, key = rest.partition("_")
        raw[section][key] = value
        origin[f"{section}.{key}"] = f"variable {name}"


def _open_key(section: str, words: str) -> str:
    """Turn the end of a variable's name into the key that a vendor knows."""
    if section == "catalog":
        return words.replace("__", ".").replace("_", "-")
    return words if words in _UNDERSCORED else words.replace("_", ".")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Undo what TOML makes of a bare key with dots: a table in a table."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_known(name: str, known: Any, what: str) -> None:
    if name not in known:
        nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
        raise ConfigError(f"unknown {what}", hint=f"the nearest known one is {nearest[0]}")


def _decode_hook(kind: type, value: Any) -> Any:
    if kind is Duration:
        if not isinstance(value, str):
            raise ValueError(f"{value!r} needs a unit, such as 60s, 15m or 6h")
        return Duration(parse_duration_s(value))
    raise NotImplementedError(kind)


def _section(cls: type[S], name: str, raw: dict[str, dict[str, Any]], origin: dict[str, str]) -> S:
    try:
        return msgspec.convert(raw[name], cls, strict=False, dec_hook=_decode_hook)
    except msgspec.ValidationError as exc:
        reason, _, where = str(exc).partition(" - at `$.")
        key = f"{name}.{where.rstrip('`')}"
        raise ConfigError(f"{key} (from {origin.get(key, 'the defaults')}): {reason}") from exc


def settings_document(settings: Settings) -> dict[str, dict[str, object]]:
    """Return the settings by section, as they would stand in the file, with secrets hidden."""
    document: dict[str, dict[str, object]] = {
        name: {key: redacted(key, value) for key, value in getattr(settings, name).items()}
        for name in _OPEN_SECTIONS
    }
    for name in _SECTIONS:
        values = msgspec.structs.asdict(getattr(settings, name))
        document[name] = {
            key: f"{value:g}s" if isinstance(value, float) else value
            for key, value in values.items()
            if value is not None
        }
    return document


def is_secret(key: str) -> bool:
    """Tell by a setting's name whether its value must never be shown."""
    return _SECRET.search(key) is not None


def redacted(key: str, value: str) -> str:
    """Return a setting's value as it may be shown: secrets and passwords in URLs hidden."""
    return "********" if is_secret(key) else _URL_PASSWORD.sub(r"\1:********@", value)
