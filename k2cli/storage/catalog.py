"""Open a pyiceberg catalog, with bounded waits and validated settings.

[catalog] is passed to pyiceberg unchanged. Missing properties with only one sensible value are
filled in, and properties that would cause an obscure error in a library are refused by name.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.exceptions import NotInstalledError
from pyiceberg.io import PY_IO_IMPL, SCHEMA_TO_FILE_IO
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError

from k2cli.config import Settings
from k2cli.errors import ConfigError
from k2cli.redaction import hide_secrets
from k2cli.storage.durable import DURABLE_IO
from k2cli.storage.s3 import aws_session, is_on
from k2cli.urls import check_database_url, check_url

NAME: Final = "k2"  # SQL catalogs store the tables of each catalog name separately
_FILE: Final = "catalog.db"  # of the embedded catalog
_REST: Final = "k2cli.storage.rest.BoundedRestCatalog"
# Packages of database drivers whose name differs from the module's.
_PACKAGES: Final = {"psycopg2": "psycopg2-binary", "psycopg": "psycopg[binary]"}


def is_embedded(settings: Settings) -> bool:
    """Return whether the embedded catalog is used: the settings name no other."""
    return "uri" not in settings.catalog and "type" not in settings.catalog


def catalog_file(settings: Settings) -> Path:
    """Return the path of the embedded catalog."""
    return settings.home / _FILE


def catalog_properties(settings: Settings) -> dict[str, str]:
    """Return the properties of the catalog in the settings, or of the embedded one."""
    if not is_embedded(settings):
        return dict(settings.catalog)
    path = catalog_file(settings)
    url = URL.create("sqlite", database=str(path), query={"timeout": "30"})
    return {
        "type": "sql",
        "uri": url.render_as_string(),
        "warehouse": str(path.parent / "warehouse"),
        **({PY_IO_IMPL: DURABLE_IO} if settings.table.fsync else {}),
        **settings.catalog,
    }


def open_catalog(properties: Mapping[str, str]) -> Catalog:
    """Open the catalog that pyiceberg's properties describe.

    Raises:
        ConfigError: a property is missing or wrong, or a required package is not installed.
    """
    known = {**_defaults(properties), **properties}
    _check_location(known)
    if is_on(known, "rest.sigv4-enabled"):
        _check_signing(known)
    if _is_rest(known):
        known = {key: value for key, value in known.items() if key != "type"}
        known["py-catalog-impl"] = _REST
    try:
        return load_catalog(NAME, **known)
    except NotInstalledError as exc:
        raise _not_installed(exc) from exc
    except (ValueError, ArgumentError) as exc:  # a wrong property, from pyiceberg or SQLAlchemy
        reason = " ".join(hide_secrets(str(exc)).split())[:300]
        raise ConfigError(f"[catalog] cannot be used: {reason}", hint="k2 config show") from exc


def shown_properties(properties: Mapping[str, str]) -> dict[str, str]:
    """Return the properties with which pyiceberg opens the same catalog without k2."""
    plain = {name: value for name, value in properties.items() if value != DURABLE_IO}
    return {**plain, **_store_defaults(properties)}


def _defaults(properties: Mapping[str, str]) -> dict[str, str]:
    """Return properties that keep pyiceberg from a wrong default or a long wait.

    Arrow gives up an upload during which a store is silent for 3 s, which busy stores often are.
    """
    return {
        "rest.sigv4.max-retries": "1",
        "s3.request-timeout": "10",
        **_store_defaults(properties),
    }


def _store_defaults(properties: Mapping[str, str]) -> dict[str, str]:
    endpoint = properties.get("s3.endpoint", "amazonaws.com")
    if "amazonaws.com" in endpoint or {"client.region", "s3.region"} & properties.keys():
        return {}
    return {"s3.region": "us-east-1"}  # otherwise pyarrow asks AWS for the bucket's region


def _is_rest(properties: Mapping[str, str]) -> bool:
    kind = properties.get("type", "").lower()
    if not kind and "py-catalog-impl" not in properties:
        return properties.get("uri", "").startswith("http")
    return kind == "rest"


def _check_location(properties: Mapping[str, str]) -> None:
    check = check_url if _is_rest(properties) else check_database_url
    check(properties.get("uri", ""), "catalog.uri", ConfigError)
    if properties.get("type") in ("rest", "sql") and not properties.get("uri"):
        raise ConfigError(
            "catalog.uri is not set",
            hint='set it in k2.toml or K2_CATALOG_URI, such as "https://catalog.example.com"',
        )
    warehouse = properties.get("warehouse", "")
    scheme = urlsplit(warehouse).scheme
    if properties.get("type") == "sql" and not warehouse:
        raise ConfigError(
            "catalog.warehouse, the location of new tables, is not set",
            hint='set it in k2.toml or K2_CATALOG_WAREHOUSE, such as "s3://bucket/path"',
        )
    if scheme and not _is_rest(properties) and scheme not in SCHEMA_TO_FILE_IO:
        known = ", ".join(sorted(SCHEMA_TO_FILE_IO))
        raise ConfigError(
            f"catalog.warehouse {warehouse!r}: unknown scheme {scheme}://",
            hint=f"use one of {known}",
        )


def _check_signing(properties: Mapping[str, str]) -> None:
    """Check that requests can be signed: pyiceberg would only fail during a request."""
    session = aws_session(properties)
    if session.get_credentials() is None:
        raise ConfigError(
            "catalog.rest.sigv4-enabled requires signing keys, but none are configured",
            hint="set client.access-key-id and client.secret-access-key under [catalog], or "
            "K2_CATALOG_CLIENT__ACCESS_KEY_ID and K2_CATALOG_CLIENT__SECRET_ACCESS_KEY",
        )
    if not (properties.get("rest.signing-region") or session.region_name):
        raise ConfigError(
            "catalog.rest.sigv4-enabled requires a signing region, but none is configured",
            hint="set rest.signing-region under [catalog], or K2_CATALOG_REST__SIGNING_REGION",
        )


def _not_installed(exc: NotInstalledError) -> ConfigError:
    cause = exc.__cause__
    module = str(cause.name).partition(".")[0] if isinstance(cause, ImportError) else "?"
    hint = str(exc).rpartition(": ")[2]
    if "SQLAlchemy" in str(exc):  # it is installed; the driver is not
        hint = f"pip install '{_PACKAGES.get(module, module)}'"
    return ConfigError(f"[catalog] needs the package {module}, which is not installed", hint=hint)
