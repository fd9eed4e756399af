"""S3: the location of a table's objects, and their keys."""

import importlib
from collections.abc import Mapping
from typing import Any, Final

from pyiceberg.io import FileIO
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.table import Table
from pyiceberg.utils.properties import get_first_property_value, property_as_bool

from k2cli.errors import ConfigError
from k2cli.records import S3Access

_SCHEMES: Final = frozenset({"s3", "s3a", "s3n"})


def s3_access(table: Table) -> S3Access | None:
    """Return how to access the files of a table, if they are in S3.

    Keys that the catalog returns for this table override those of the settings; without either,
    AWS's default sources are used: variables, profiles, the machine's role.
    """
    scheme, bucket, _ = PyArrowFileIO.parse_location(table.location())
    if scheme not in _SCHEMES:
        return None
    known = table.io.properties
    endpoint = known.get("s3.endpoint", "")
    key_id, secret, token = _keys(known)
    return S3Access(
        endpoint=endpoint.partition("://")[2] or endpoint,
        is_encrypted=not endpoint.startswith("http://"),
        # As in pyarrow, which wrote the files.
        is_path_style=bool(endpoint) and not is_on(known, "s3.force-virtual-addressing"),
        region=_region(table.io, scheme, bucket),
        key_id=key_id,
        secret=secret,
        session_token=token,
    )


def is_on(properties: Mapping[str, Any], name: str) -> bool:
    """Return whether a property is set to true.

    Raises:
        ConfigError: it is neither true nor false.
    """
    try:
        return property_as_bool(dict(properties), name, False)
    except ValueError as exc:
        raise ConfigError(f"catalog.{name} is neither true nor false") from exc


def aws_session(properties: Mapping[str, Any]) -> Any:
    """Open a session of AWS's library, which finds keys and regions in the default sources.

    Raises:
        ConfigError: it is not installed, or the profile does not exist.
    """
    try:
        boto3 = importlib.import_module("boto3")
        errors = importlib.import_module("botocore.exceptions")
    except ImportError as exc:
        raise ConfigError(
            "signing and keys that are not in the settings need the package boto3",
            hint="pip install boto3",
        ) from exc
    try:
        return boto3.Session(
            profile_name=properties.get("client.profile-name"),
            region_name=properties.get("client.region"),
            aws_access_key_id=properties.get("client.access-key-id"),
            aws_secret_access_key=properties.get("client.secret-access-key"),
            aws_session_token=properties.get("client.session-token"),
        )
    except errors.BotoCoreError as exc:
        raise ConfigError(f"the keys under [catalog] cannot be used: {exc}") from exc


def _keys(properties: Mapping[str, Any]) -> tuple[str | None, str | None, str | None]:
    if is_on(properties, "s3.anonymous"):
        return None, None, None
    key_id, secret, token = (
        get_first_property_value(dict(properties), f"s3.{name}", f"client.{name}")
        for name in ("access-key-id", "secret-access-key", "session-token")
    )
    if key_id is not None:
        return key_id, secret, token
    found = aws_session(properties).get_credentials()
    if found is None:
        return None, None, None
    keys = found.get_frozen_credentials()
    return keys.access_key, keys.secret_key, keys.token


def _region(io: FileIO, scheme: str, bucket: str) -> str:
    given = get_first_property_value(io.properties, "s3.region", "client.region")
    if given is None and isinstance(io, PyArrowFileIO):
        given = io.fs_by_scheme(scheme, bucket).region
    return str(given or "us-east-1")
