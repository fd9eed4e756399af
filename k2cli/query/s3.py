"""DuckDB's access to S3: its httpfs extension, from a separate package, and keys as secrets.

Nothing is downloaded, and the user's stored DuckDB secrets are not used. User SQL can see that
secrets exist, but not their values; the engine's lock-down prevents access to objects outside the
plan.
"""

import itertools
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import duckdb

from k2cli.errors import ConfigError
from k2cli.query.render import literal
from k2cli.records import S3Access, TableFiles

_PACKAGE: Final = "duckdb_extension_httpfs"
_HINT: Final = f"pip install duckdb-extension-httpfs=={duckdb.__version__}"
KEYS_HINT: Final = "check s3.access-key-id and s3.secret-access-key under [catalog]: k2 config show"
_numbers: Final = itertools.count()  # of secrets: several sessions may have secrets
_SCHEMES: Final = ("s3://", "s3a://", "s3n://")


def check_paths(plans: Sequence[TableFiles]) -> None:
    """Refuse files that DuckDB cannot access.

    Raises:
        ConfigError: a table is neither on disk nor in S3.
    """
    for path in (path for plan in plans for path in plan.paths[:1]):
        if "://" in path and not path.startswith(_SCHEMES):
            raise ConfigError(
                f"{path} cannot be read by a query: it is neither on disk nor in S3",
                hint="query the table with an engine that can read it, such as Spark or Trino",
            )


def open_s3(connection: duckdb.DuckDBPyConnection, plans: Sequence[TableFiles]) -> list[str]:
    """Let DuckDB read the objects of plans, each with its table's keys.

    Returns the names of the secrets that hold the keys.

    Raises:
        ConfigError: the extension is not installed, or is for another DuckDB version.
    """
    remote = [(plan, plan.s3) for plan in plans if plan.s3 is not None and plan.paths]
    if not remote:
        return []
    try:
        connection.execute(f"LOAD {literal(str(_extension()))}")
    except duckdb.Error as exc:
        reason = str(exc).partition("\n")[0]
        raise ConfigError(f"DuckDB cannot load its httpfs extension: {reason}", hint=_HINT) from exc
    # Data files never change, so their metadata can be cached.
    connection.execute("SET GLOBAL enable_http_metadata_cache = true")
    if authority := os.environ.get("SSL_CERT_FILE"):  # OpenSSL's, as everywhere else
        connection.execute(f"SET GLOBAL ca_cert_file = {literal(authority)}")
    names = []
    for plan, access in remote:
        names.append(f"k2_{next(_numbers)}")
        try:
            connection.execute(_secret(names[-1], access, _common_prefix(plan.paths)))
        except duckdb.Error:  # its text may show the statement
            raise ConfigError(
                f"DuckDB rejects the S3 settings of table {plan.kind.table}",
                hint="check the s3.* settings under [catalog]: k2 config show",
            ) from None
    return names


def _extension() -> Path:
    package = find_spec(_PACKAGE)
    if package is not None and package.origin is not None:
        folder = Path(package.origin).parent / "extensions" / f"v{duckdb.__version__}"
        path = folder / "httpfs.duckdb_extension"
        if path.is_file():
            return path
    raise ConfigError(
        "queries of tables in S3 need DuckDB's httpfs extension"
        f" for version {duckdb.__version__}, which is not installed",
        hint=_HINT,
    )


def _common_prefix(paths: Sequence[str]) -> str:
    """Build the scope of a secret: DuckDB uses the one with the longest matching prefix."""
    return os.path.commonprefix(list(paths)).partition("[")[0]  # noqa: RUF071, it is as DuckDB's


def _secret(name: str, access: S3Access, scope: str) -> str:
    settings = {
        "KEY_ID": access.key_id,
        "SECRET": access.secret,
        "SESSION_TOKEN": access.session_token,
        "REGION": access.region,
        "ENDPOINT": access.endpoint or None,
        "URL_STYLE": "path" if access.is_path_style else "vhost",
        "SCOPE": scope,
    }
    words = [f"{key} {literal(value)}" for key, value in settings.items() if value is not None]
    is_encrypted = "true" if access.is_encrypted else "false"
    return f"CREATE SECRET {name} (TYPE s3, USE_SSL {is_encrypted}, {', '.join(words)})"
