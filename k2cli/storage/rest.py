"""The client of an Iceberg REST catalog. pyiceberg loads it by its name, for REST catalogs only."""

import os
from collections.abc import Callable
from typing import Any, Final

import requests
from pydantic import ValidationError
from pyiceberg.catalog.rest import RestCatalog
from pyiceberg.exceptions import (
    CommitFailedException,
    CommitStateUnknownException,
    RESTError,
)
from pyiceberg.table import CommitTableResponse, Table
from pyiceberg.table.update import AddSnapshotUpdate, TableRequirement, TableUpdate

# Names of Iceberg's Java client; in milliseconds.
_CONNECT: Final = ("rest.client.connection-timeout-ms", 10_000)
_ANSWER: Final = ("rest.client.socket-timeout-ms", 30_000)


class BoundedRestCatalog(RestCatalog):
    """pyiceberg's client with timeouts, which it lacks by default."""

    def commit_table(
        self,
        table: Table,
        requirements: tuple[TableRequirement, ...],
        updates: tuple[TableUpdate, ...],
    ) -> CommitTableResponse:
        """Commit; a refusal only counts if the commit is not in the table.

        A gateway that lost the answer may have repeated the request, which the catalog refused
        because of the first one. After a refusal the files are deleted.

        Raises:
            CommitFailedException: another writer was faster.
            CommitStateUnknownException: the outcome is unknown.
        """
        try:
            answer: CommitTableResponse = super().commit_table(table, requirements, updates)
        except CommitFailedException as exc:
            there = self._reloaded(table, exc)
            added = [each.snapshot for each in updates if isinstance(each, AddSnapshotUpdate)]
            if not any(there.snapshot_by_id(snapshot.snapshot_id) for snapshot in added):
                raise
            known = {"metadata": there.metadata, "metadata-location": there.metadata_location}
            answer = CommitTableResponse.model_validate(known)
        except ValidationError as exc:
            raise CommitStateUnknownException("the answer is not from a catalog") from exc
        return answer

    def _reloaded(self, table: Table, refusal: CommitFailedException) -> Table:
        try:
            there: Table = self.load_table(table.name())
        except (OSError, RESTError, ValidationError) as exc:
            raise CommitStateUnknownException(
                f"the catalog refused a commit ({refusal}) and does not return its state"
            ) from exc
        return there

    def _config_headers(self, session: requests.Session) -> None:
        # Called first for every session, before it fetches a token.
        super()._config_headers(session)
        timeouts_s = tuple(
            int(self.properties.get(name, default)) / 1000 for name, default in (_CONNECT, _ANSWER)
        )
        session.verify = os.environ.get("SSL_CERT_FILE") or True  # OpenSSL's, as everywhere else
        session.request = _bounded(session.request, timeouts_s)  # type: ignore[method-assign]


def _bounded(
    request: Callable[..., requests.Response], timeouts_s: tuple[float, ...]
) -> Callable[..., requests.Response]:
    """Limit the time of requests, and report failures in plain words."""

    def send(method: str, url: str, **options: Any) -> requests.Response:
        try:
            return request(method, url, timeout=timeouts_s, **options)
        except requests.Timeout as exc:
            raise TimeoutError("the catalog does not answer") from exc
        except requests.exceptions.SSLError as exc:
            reason = getattr(exc.args[0], "reason", exc)
            raise ConnectionError(f"TLS with the catalog failed: {reason}") from exc
        except requests.ConnectionError as exc:
            raise ConnectionError("the catalog cannot be reached, or does not answer") from exc

    return send
