"""Settings: defaults < file < profile < K2_* variables < options, read once and passed down.

The file is TOML, `$K2_HOME/k2.toml` or the path in K2_CONFIG. A profile is a part of it;
K2_PROFILE=prod or `k2 --profile prod` merges it over the rest, key by key:

    [table]
    keep_for = "6h"

    [profile.prod.table]
    keep_for = "7d"

A variable is named after section and key: K2_TABLE_KEEP_FOR=6h. Three sections are passed on
unchanged: [catalog] to pyiceberg, [kafka] to librdkafka, [schema_registry] to the registry's
client. In their variables `_` means a dot: K2_KAFKA_BOOTSTRAP_SERVERS is `bootstrap.servers`. Those
of the catalog follow pyiceberg, with `__` for a dot and `_` for a dash:
K2_CATALOG_S3__ACCESS_KEY_ID is `s3.access-key-id`.

The module is long because every setting is declared in it, next to the code that reads it.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, get_args

import msgspec
from msgspec import Meta

from k2cli.errors import ConfigError, NotFound
from k2cli.nearest import suggestion
from k2cli.paths import expand_home, is_utf8
from k2cli.redaction import HIDDEN, redact_setting

FILE_NAME: Final = "k2.toml"
DEFAULT: Final = "default"  # the origin of values that are not set
_LONGEST_RUN: Final = 64
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B(?:YTES?)?")
LONGEST_DAYS: Final = 36_500  # 100 years; the system's timers cannot count much further
_LARGEST_SIZE_BYTES: Final = 2**60
_MAX_DIGITS: Final = 18
_UNIT_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration_s(text: str) -> float:
    """Parse `500ms`, `60s`, `15m`, `6h` or `7d` to seconds.

    Raises:
        ValueError: the text is not a number with one of these units, or more than 100 years.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a duration such as 500ms, 60s, 15m, 6h or 7d")
    duration_s = float(match[1]) * _UNIT_S[match[2]]
    if duration_s > LONGEST_DAYS * _UNIT_S["d"]:
        raise ValueError(f"{text!r} is longer than {LONGEST_DAYS}d")
    return duration_s


class Duration(float):
    """Seconds, written in settings as `60s` or `15m`."""


def parse_size_bytes(text: str) -> int:
    """Parse `500MB`, `1.5 GB` or `2GiB` to bytes.

    Raises:
        ValueError: the text is not a number with one of these units, less than a byte, or more
            than 1024 PiB.
    """
    match = _SIZE.fullmatch(text.strip().upper())
    base = 1024 if match and match[3] else 1000
    size_bytes = float(match[1]) * base ** "BKMGT".index(match[2] or "B") if match else 0.0
    if size_bytes < 1:
        raise ValueError(f"{text!r} is not a size such as 500MB, 2GB or 2GiB")
    if size_bytes > _LARGEST_SIZE_BYTES:
        raise ValueError(f"{text!r} is larger than {_LARGEST_SIZE_BYTES >> 40}TiB")
    return int(size_bytes)


class Size(int):
    """Bytes, written in settings as `500MB` or `2GB`."""


class Secret(str):
    """A text that is never shown."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(HIDDEN)


class Words(tuple[str, ...]):
    """Texts, written in settings as a list, or as one text with commas."""

    __slots__ = ()


class Backfill(str):
    """How much of what was missed between two runs is fetched: `1h`, `100000` trades, or `off`."""

    __slots__ = ()

    @property
    def is_off(self) -> bool:
        """Whether nothing is fetched, also of gaps during a run."""
        return self == "off"

    @property
    def trades(self) -> int | None:
        """How many trades of each symbol."""
        return int(self) if self.isdecimal() else None

    @property
    def duration_s(self) -> float | None:
        """The age of the oldest trades, in seconds."""
        return None if self.is_off or self.isdecimal() else parse_duration_s(self)


def parse_backfill(text: str) -> Backfill:
    """Parse `1h`, `100000` or `off`.

    Raises:
        ValueError: the text is none of these.
    """
    word = text.strip().lower()
    if word != "off" and not (word.isascii() and word.isdecimal()):
        try:
            parse_duration_s(word)
        except ValueError as exc:
            raise ValueError(
                f"{text!r} is not a duration such as 1h, a number of trades, or off"
            ) from exc
    if len(word) > _MAX_DIGITS:
        raise ValueError(f"{text!r} is longer than {_MAX_DIGITS} characters")
    return Backfill(word)


PositiveInt = Annotated[int, Meta(ge=1)]


class _Section(msgspec.Struct, frozen=True):
    pass


class TableSettings(_Section, frozen=True, kw_only=True):
    """How long old snapshots are kept, and whether commits survive a power cut.

    A snapshot is kept if either rule keeps it. Each adds about 0.4 ms to every commit.
    """

    keep_snapshots: Annotated[
        PositiveInt, Meta(description="Keep this many of the newest snapshots.")
    ] = 20
    keep_for: Annotated[Duration, Meta(description="Also keep snapshots younger than this.")] = (
        Duration(0)
    )
    fsync: Annotated[
        bool,
        Meta(
            description="In an embedded home, report a commit once its files are on disk: a power "
            "cut loses nothing that was reported."
        ),
    ] = True


class StreamSettings(_Section, frozen=True, kw_only=True):
    """What a stream reads, when it commits, and when it considers a connection dead."""

    symbols: Annotated[
        Words,
        Meta(description='Symbols, patterns and files, as with --symbols: ["BTCUSDT", "all:EUR"].'),
    ] = Words()
    symbols_refresh: Annotated[
        Duration,
        Meta(description="Ask the exchange which symbols trade this often, at most every second."),
    ] = Duration(3600)

    flush_rows: Annotated[PositiveInt, Meta(description="Commit after this many rows.")] = 100_000
    flush_interval: Annotated[
        Duration, Meta(description="Commit after this time, even with fewer rows.")
    ] = Duration(10)
    stale_after: Annotated[
        Duration,
        Meta(description="Reopen a connection without data for this long, not even a ping."),
    ] = Duration(60)
    connect_timeout: Annotated[
        Duration,
        Meta(description="Time limit of the first connection; later outages have none."),
    ] = Duration(10)
    backfill: Annotated[
        Backfill,
        Meta(
            description="How much of what was missed since the last run is fetched: a time, a "
            "number of trades per symbol, or off to fetch nothing at all."
        ),
    ] = Backfill("1h")


class QuerySettings(_Section, frozen=True, kw_only=True):
    """Resource limits of queries. `timeout` and `answer_limit` apply to `k2 query sql`."""

    memory_limit: Annotated[str, Meta(description="Above this limit DuckDB spills to $TMPDIR.")] = (
        "2GB"
    )
    spill_limit: Annotated[Size, Meta(description="How much a query may spill to $TMPDIR.")] = Size(
        20 * 10**9
    )
    timeout: Annotated[
        Duration,
        Meta(description="Stop SQL after this time, not counting output (0s: no limit)."),
    ] = Duration(300)
    answer_limit: Annotated[
        Size, Meta(description="Stop SQL whose answer is larger than this.")
    ] = Size(20 * 10**9)
    threads: Annotated[
        PositiveInt | None,
        Meta(description="Number of threads; all cores by default.", examples=[2]),
    ] = None
    timezone: Annotated[
        str, Meta(description="Show times in this zone: an IANA name, or local.")
    ] = "UTC"


class BinanceSettings(_Section, frozen=True, kw_only=True):
    """Access to the history of Binance's futures. Prefer the variable for the key."""

    api_key: Annotated[
        Secret | None,
        Meta(
            description="API key, without any permission, for past trades of futures.",
            examples=["..."],
        ),
    ] = None


class HomeSettings(_Section, frozen=True, kw_only=True):
    """Permissions of the home folder, which holds the embedded tables and this file."""

    shared: Annotated[
        bool,
        Meta(description="Create files with the permissions of your umask instead of owner-only."),
    ] = False


def _random_run() -> str:
    return os.urandom(8).hex()


class Settings(_Section, frozen=True, kw_only=True):
    """All settings of one run."""

    home: Path
    # What identifies this run in log lines, message headers and snapshots.
    run: str = msgspec.field(default_factory=_random_run)
    file: Path | None = None  # the config file that was read
    profile: str | None = None
    # Origin by `section.key`, also of home, file and profile. All others are defaults.
    origins: Mapping[str, str] = {}
    catalog: Mapping[str, str] = {}
    kafka: Mapping[str, str] = {}  # with librdkafka's names
    schema_registry: Mapping[str, str] = {}  # with the names of SchemaRegistryClient
    table: TableSettings = TableSettings()
    stream: StreamSettings = StreamSettings()
    query: QuerySettings = QuerySettings()
    binance: BinanceSettings = BinanceSettings()
    access: HomeSettings = HomeSettings()


_SECTIONS: Final[Mapping[str, type[_Section]]] = {
    "table": TableSettings,
    "stream": StreamSettings,
    "query": QuerySettings,
    "binance": BinanceSettings,
    "home": HomeSettings,
}
_FIELDS: Final = {"home": "access"}  # attribute of Settings, if its name is not the section's
_OPEN_SECTIONS: Final = ("catalog", "kafka", "schema_registry")  # any key, passed on
BOOTSTRAP: Final = "bootstrap.servers"  # of Kafka: if it is set, Kafka is in use
_PROFILE: Final = "profile"
_OWN_VARIABLES: Final = ("K2_HOME", "K2_CONFIG", "K2_PROFILE", "K2_RUN")  # outside of sections
_UNDERSCORED: Final = ("log_level", "ssl_ca", "ssl_certificate", "ssl_key")  # of librdkafka


@dataclass(frozen=True, slots=True)
class _Found:
    """The values of file and variables by section and key, each with its origin."""

    values: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {name: {} for name in (*_OPEN_SECTIONS, *_SECTIONS)}
    )
    origins: dict[str, str] = field(default_factory=dict)

    def put(self, section: str, key: str, value: object, origin: str) -> None:
        """Set a value, replacing any other."""
        _check_open(section, key, origin)
        self.values[section][key] = value
        self.origins[f"{section}.{key}"] = origin


def config_path(env: Mapping[str, str], *, home: Path | None = None) -> Path:
    """Return the path of the config file, whether it exists or not."""
    if env.get("K2_CONFIG"):
        return _expanded(env["K2_CONFIG"], "K2_CONFIG")
    return _home(env, home) / FILE_NAME


def load_settings(
    env: Mapping[str, str], *, home: Path | None = None, profile: str | None = None
) -> Settings:
    """Merge defaults, config file, profile and K2_* variables.

    `home` and `profile` come from the command line and override K2_HOME and K2_PROFILE.

    Raises:
        ConfigError: an unknown key or a wrong value; the message names the key and its origin.
    """
    _check_utf8(env, home)
    path = config_path(env, home=home)
    document = _read(path, is_required=bool(env.get("K2_CONFIG")))
    chosen = profile or env.get("K2_PROFILE") or None
    found = _Found()
    _merge_file(found, document or {}, path, chosen)
    _merge_env(found, env)
    own = {
        "home": _origin("--home", home, "K2_HOME", env),
        "file": _origin("", None, "K2_CONFIG", env),
        "profile": _origin("--profile", profile, "K2_PROFILE", env),
    }
    sections: dict[str, Any] = {
        name: {key: _text(value) for key, value in found.values[name].items()}
        for name in _OPEN_SECTIONS
    } | {_FIELDS.get(name, name): _section(cls, name, found) for name, cls in _SECTIONS.items()}
    return Settings(
        run=_run_id(env),
        home=_home(env, home),
        file=path if document is not None else None,
        profile=chosen,
        origins=own | found.origins,
        **sections,
    )


def _check_utf8(env: Mapping[str, str], home: Path | None) -> None:
    for name, value in env.items():
        if name.startswith("K2_") and not (is_utf8(name) and is_utf8(value)):
            raise ConfigError(
                f"variable {name} is not UTF-8", hint=f"unset {name}, or set it to another value"
            )
    if not is_utf8(str(_home(env, home))):
        raise ConfigError(
            f"the name of the home folder is not UTF-8: {_home(env, home)}",
            hint="choose another one with K2_HOME or --home",
        )


def _home(env: Mapping[str, str], home: Path | None) -> Path:
    return _expanded(home or env.get("K2_HOME") or "~/.k2", "--home or K2_HOME")


def _expanded(path: str | Path, setting: str) -> Path:
    try:
        return expand_home(path).absolute()
    except NotFound as exc:
        raise ConfigError(str(exc), hint=f"set {setting} to a full path") from exc


def _origin(option: str, value: object, variable: str, env: Mapping[str, str]) -> str:
    if value is not None:
        return f"option {option}"
    return f"variable {variable}" if env.get(variable) else DEFAULT


def _run_id(env: Mapping[str, str]) -> str:
    run = env.get("K2_RUN") or _random_run()
    if len(run) > _LONGEST_RUN or not run.isprintable() or " " in run:
        raise ConfigError(
            "variable K2_RUN: an id of at most 64 characters, without spaces or control characters",
            hint="unset K2_RUN for a random id",
        )
    return run


def _read(path: Path, *, is_required: bool) -> dict[str, Any] | None:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as exc:
        if is_required:
            raise ConfigError(
                f"config file {path} does not exist", hint="run k2 config init, or unset K2_CONFIG"
            ) from exc
        return None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigError(
            f"config file {path} cannot be read: {exc}",
            hint="fix it in an editor, or start over with k2 config init --force",
        ) from exc


def _merge_file(
    found: _Found, document: Mapping[str, Any], path: Path, profile: str | None
) -> None:
    profiles = _table(document.get(_PROFILE, {}), _PROFILE, path)
    sections = {name: values for name, values in document.items() if name != _PROFILE}
    _merge_sections(found, sections, path)
    for name, overlay in profiles.items():
        is_chosen = name == profile
        within = f"{_PROFILE}.{name}"
        _merge_sections(
            found if is_chosen else _Found(), _table(overlay, within, path), path, within
        )
    if profile is not None:
        _check_profile(profile, profiles, path)


def _check_profile(profile: str, profiles: Mapping[str, Any], path: Path) -> None:
    if not profiles:
        raise ConfigError(
            f"unknown profile {profile}: {path} has none",
            hint=f"add one with a section such as [{_PROFILE}.{profile}.kafka]",
        )
    if profile not in profiles:
        raise ConfigError(
            f"unknown profile {profile} in {path}", hint=f"it has {', '.join(profiles)}"
        )


def _merge_sections(
    found: _Found, sections: Mapping[str, Any], path: Path, profile: str = ""
) -> None:
    """Merge the sections of a file, or of one of its profiles: `profile` is then profile.NAME."""
    origin = f"{path} [{profile}]" if profile else str(path)
    known = found.values if profile else {**found.values, _PROFILE: {}}
    for section, values in sections.items():
        name = f"{profile}.{section}" if profile else section
        _check_known(section, known, f"section [{name}] in {path}")
        keys = _table(values, name, path)
        if section in _OPEN_SECTIONS:
            keys = _flat(keys)
        else:
            for key in keys:
                fields = _SECTIONS[section].__struct_fields__
                _check_known(key, fields, f"key {name}.{key} in {path}")
        for key, value in keys.items():
            found.put(section, key, value, origin)


def _table(value: object, name: str, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{name} in {path} is not a section: write [{name}]")
    return value


def _merge_env(found: _Found, env: Mapping[str, str]) -> None:
    known = [
        f"K2_{section}_{key}".upper()
        for section, cls in _SECTIONS.items()
        for key in cls.__struct_fields__
    ]
    for name, value in env.items():
        if not name.startswith("K2_") or name in _OWN_VARIABLES:
            continue
        rest = name.removeprefix("K2_").lower()
        section = next((each for each in _OPEN_SECTIONS if rest.startswith(f"{each}_")), "")
        words = rest.removeprefix(f"{section}_")
        if section and words:
            key = _open_key(section, words)
        else:
            _check_known(name, [*known, *_OWN_VARIABLES, *_open_names(name)], f"variable {name}")
            section, _, key = rest.partition("_")
        found.put(section, key, value, f"variable {name}")


def _open_names(name: str) -> list[str]:
    """Replace the part of a name that may be a misspelled section with each open section."""
    words = name.split("_")
    names = []
    for section in _OPEN_SECTIONS:
        parts = section.upper().split("_")
        names.append("_".join(["K2", *parts, *words[1 + len(parts) :]]))
    return [each for each in names if each != name]


def _open_key(section: str, words: str) -> str:
    """Convert the end of a variable's name to the vendor's key."""
    if section == "catalog":
        return words.replace("__", ".").replace("_", "-")
    return words if words in _UNDERSCORED else words.replace("_", ".")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested tables, which TOML creates for bare keys with dots."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat


def _text(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_known(name: str, known: Iterable[str], what: str) -> None:
    names = list(known)
    if name not in names:
        raise ConfigError(f"unknown {what}", hint=suggestion(name, names))


def _check_open(section: str, key: str, origin: str) -> None:
    """Find the misspelling that would silently disable Kafka."""
    near = difflib.get_close_matches(key, [BOOTSTRAP], cutoff=0.85)
    if section == "kafka" and near and key != BOOTSTRAP:
        raise ConfigError(f"unknown key kafka.{key} ({origin})", hint=f"did you mean {BOOTSTRAP}?")


def _decode_hook(kind: type, value: Any) -> Any:
    if kind is Duration:
        if not isinstance(value, str):
            raise ValueError(f"{value!r} needs a unit, such as 60s, 15m or 6h")
        return Duration(parse_duration_s(value))
    if kind is Size:
        if not isinstance(value, str):
            raise ValueError(f"{value!r} needs a unit, such as 500MB or 2GB")
        return Size(parse_size_bytes(value))
    if kind is Secret:
        if not isinstance(value, str):
            raise ValueError("expected a text in quotes")
        return Secret(value)
    if kind is Words:
        words = value.split(",") if isinstance(value, str) else value
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"{value!r} is not a list of texts")
        return Words(filter(None, map(str.strip, words)))
    if kind is Backfill:
        return parse_backfill(str(value))
    raise NotImplementedError(kind)


def _section(cls: type[_Section], name: str, found: _Found) -> _Section:
    try:
        return msgspec.convert(found.values[name], cls, strict=False, dec_hook=_decode_hook)
    except msgspec.ValidationError as exc:
        reason, _, where = str(exc).partition(" - at `$.")
        key = f"{name}.{where.rstrip('`')}"
        raise ConfigError(f"{key} (from {found.origins.get(key, DEFAULT)}): {reason}") from exc


def settings_document(settings: Settings) -> dict[str, dict[str, object]]:
    """Return the settings by section, as in the file, with secrets hidden."""
    document: dict[str, dict[str, object]] = {
        name: {key: redact_setting(key, value) for key, value in getattr(settings, name).items()}
        for name in _OPEN_SECTIONS
    }
    for name in _SECTIONS:
        values = msgspec.structs.asdict(getattr(settings, _FIELDS.get(name, name)))
        document[name] = {key: _shown(value) for key, value in values.items() if value is not None}
    return document


def _shown(value: object) -> object:
    if isinstance(value, Secret):
        return HIDDEN
    if isinstance(value, Backfill):
        return str(value)
    if isinstance(value, Size):
        return f"{value / 10**9:.15g}GB"
    return f"{value:.15g}s" if isinstance(value, Duration) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingDoc:
    """The description of a setting."""

    key: str
    example: object  # the default, if any
    text: str


def documented_sections() -> dict[str, tuple[str, list[SettingDoc]]]:
    """Return the description and the settings of each section."""
    return {
        name: (cls.__doc__ or "", [_doc(each) for each in msgspec.structs.fields(cls)])
        for name, cls in _SECTIONS.items()
    }


def _doc(setting: msgspec.structs.FieldInfo) -> SettingDoc:
    metas = [each for each in get_args(setting.type) if isinstance(each, Meta)]
    (meta,) = (each for each in metas if each.description)
    example = (meta.examples or [None])[0] if setting.default is None else setting.default
    return SettingDoc(key=setting.name, example=_shown(example), text=meta.description or "")
