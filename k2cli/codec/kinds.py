"""Decode messages of any schema version to rows of a record kind."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from k2cli.avro.writer import writer_schema
from k2cli.codec.decode import Decoded
from k2cli.codec.encode import HEADER_BYTES
from k2cli.codec.resolve import RecordDecoder, record_name
from k2cli.codec.upgrade import UPGRADES, Origin, V1Defaults
from k2cli.records import RecordKind


class KindDecoder:
    """Decodes messages of one writer's schema, of any version, into rows of a kind."""

    def __init__(self, schema: Mapping[str, Any], kind: RecordKind, defaults: V1Defaults) -> None:
        """Match a writer's schema to a k2 schema version; `defaults` apply to v1.

        Raises:
            Incompatible: records of the writer's schema cannot be read as the kind.
            BadData: the schema is not one that can be decoded safely.
        """
        schema = writer_schema(schema)
        name = record_name(schema)
        of_kind = (upgrade for upgrade in UPGRADES.values() if upgrade.kind.name == kind.name)
        self._upgrade = next((each for each in of_kind if each.avro["name"] == name), None)
        self._defaults = defaults
        avro = self._upgrade.avro if self._upgrade else kind.avro
        self._decoder = RecordDecoder(schema, avro, prefix_bytes=HEADER_BYTES)
        self.left_out: Final = self._decoder.left_out  # fields of the writer that rows lack

    def decode(self, values: Sequence[bytes], origin: Origin) -> Decoded:
        """Decode messages, including headers, from `origin`; a misfit is a reject."""
        decoded = self._decoder.decode(values)
        if self._upgrade is None:
            return decoded
        return self._upgrade.apply(decoded, origin.take(decoded.indexes), self._defaults)
