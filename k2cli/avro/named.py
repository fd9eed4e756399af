"""A schema with the name that a user knows it by."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from k2cli.avro.compatibility import Schema
from k2cli.avro.types import link
from k2cli.errors import BadData
from k2cli.records import TRADES, RecordKind, avro_to_arrow_schema


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedSchema:
    """A parsed Avro schema, and its name: trade_v2, a file, SUBJECT@VERSION."""

    name: str
    avro: Any

    def record(self) -> Mapping[str, Any]:
        """Return the schema if it is the schema of a record.

        Raises:
            BadData: it is not.
        """
        if not isinstance(self.avro, dict) or self.avro.get("type") != "record":
            raise BadData(f"{self.name} is not the schema of a record")
        return self.avro

    def linked(self) -> Schema:
        """Return the schema with resolved names."""
        return Schema(name=self.name, type=link(self.avro))

    def kind(self) -> RecordKind:
        """Return a record kind with this schema, which must be the schema of a record.

        Raises:
            BadData: a field has a type that no column has.
        """
        try:
            arrow = avro_to_arrow_schema(self.avro)
        except ValueError as exc:
            hint = f"k2 schema validate {self.name}"
            raise BadData(f"{self.name}: {exc}", hint=hint) from exc
        return replace(TRADES, name=self.name, avro=self.avro, arrow=arrow)
