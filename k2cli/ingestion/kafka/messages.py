"""Decode message values into rows and rejects, each with its writer's schema."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Final, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from k2cli.codec.decode import Decoded, empty_batch
from k2cli.codec.encode import HEADER_BYTES, MAGIC
from k2cli.codec.kinds import KindDecoder
from k2cli.codec.upgrade import V1_DEFAULTS, Origin, V1Defaults
from k2cli.columns import join_batches
from k2cli.errors import BadData, NotFound
from k2cli.events import Observer
from k2cli.ingestion.kafka.registry import NotYet, Registry, subject_of
from k2cli.records import RecordKind
from k2cli.rejects import Cause, Fault

_REFRESH_S: Final = 5.0
_ASK_S: Final = 0.5  # to fetch the schemas of one read: the group and signals must not wait longer
_NOT_BYTES: Final = b""
# Whatever a decoder raises for a body, one message must not stop the others.
_FAILURES: Final = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
    pa.ArrowException,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedMessages(Decoded):
    """The decoded first part of some messages; the rest waits for the registry."""

    count: int  # how many of them were decoded or rejected


class MessageReader:
    """Decodes the messages of a topic with one record kind, written with any schema version."""

    def __init__(  # noqa: PLR0913  only tests replace the clock
        self,
        *,
        registry: Registry,
        topic: str,
        kind: Callable[[], RecordKind],
        observe: Observer,
        defaults: V1Defaults = V1_DEFAULTS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare for a topic.

        `kind` returns the record kind with the table's current columns; it is called for every new
        schema. `defaults` are the values that records of the v1 schemas lack.
        """
        self._registry = registry
        self._clock = clock
        self._topic = topic
        self._ask_kind = kind
        self._kind = kind()
        self._defaults = defaults
        self._observe = observe
        self._decoders: dict[bytes, KindDecoder] = {}  # by header
        self._checked_at = 0.0  # monotonic: when the table's columns were last read

    def read(
        self,
        values: Sequence[bytes | None],
        partitions: npt.NDArray[np.int64],
        offsets: npt.NDArray[np.int64],
    ) -> DecodedMessages:
        """Decode values in order; `platform_sequence` becomes the offset of each.

        A value that is not a record of the kind is a reject, with its index in `values`. The
        registry gets half a second; then `count` is the index to continue from.

        Raises:
            Unavailable: the registry does not return a schema.
        """
        self._refresh_if_due()
        origin = self._origin(partitions, offsets)
        parts: list[tuple[pa.RecordBatch, npt.NDArray[np.int64]]] = []
        rejects: list[tuple[int, Fault]] = []
        count = len(values)
        deadline = self._clock() + _ASK_S
        for header, indexes in _by_header(values).items():
            try:
                decoder = self._decoder(header, deadline)
            except NotYet:
                count = int(indexes[0])
                parts = [_first(part, count) for part in parts]
                break
            if isinstance(decoder, Fault):
                rejects += [
                    (index, _value_fault(values[index]) or decoder) for index in indexes.tolist()
                ]
                continue
            part = self._decode(decoder, _taken(values, indexes), origin.take(indexes))
            parts.append((part.rows, indexes[part.indexes]))
            rejects += [(int(indexes[index]), fault) for index, fault in part.rejects]
        rows, decoded_indexes = self._in_order(parts)
        return DecodedMessages(
            rows=self._numbered(rows, offsets[decoded_indexes]),
            indexes=decoded_indexes,
            rejects=sorted((each for each in rejects if each[0] < count), key=itemgetter(0)),
            count=count,
        )

    def _decoder(self, header: bytes, deadline: float) -> KindDecoder | Fault:
        """Return the decoder for messages with this header, or why there is none.

        Raises:
            NotYet: the time is up, or the registry may not have the schema yet.
        """
        if header in self._decoders:
            return self._decoders[header]
        if len(header) < HEADER_BYTES or header[0] != MAGIC:
            reason = "not in the wire format of a schema registry"
            return Fault(reason=reason, cause=Cause.BAD_WIRE_FORMAT)
        schema_id = int.from_bytes(header[1:])
        if self._clock() > deadline:
            raise NotYet(f"schema {schema_id} was not fetched yet")
        try:
            schema = self._registry.schema(schema_id)
            self._refresh()
            found = KindDecoder(schema, self._kind, self._defaults)
        except NotYet:
            raise
        except (BadData, ValueError, NotFound) as exc:  # fetched again: it may exist by then
            is_unknown = isinstance(exc, NotFound)
            cause = Cause.UNKNOWN_SCHEMA if is_unknown else Cause.INCOMPATIBLE_SCHEMA
            return Fault(reason=f"schema id {schema_id}: {exc}", cause=cause)
        self._decoders[header] = found
        self._checked_at = self._clock()
        if found.left_out:
            self._observe(
                "fields_left_out",
                topic=self._topic,
                schema_id=schema_id,
                fields=",".join(found.left_out),
                hint=f"k2 table evolve {self._kind.name} --schema {subject_of(self._topic)}",
            )
        return found

    def _decode(self, decoder: KindDecoder, values: Sequence[bytes], origin: Origin) -> Decoded:
        """Decode values; only those that make the decoder fail are rejects."""
        try:
            return decoder.decode(values, origin)
        except _FAILURES as exc:
            if len(values) == 1:
                reason = f"cannot be decoded: {type(exc).__name__}: {exc}"
                return Decoded(
                    rows=empty_batch(self._kind.arrow),
                    indexes=np.zeros(0, np.int64),
                    rejects=[(0, Fault(reason=reason, cause=Cause.BAD_BODY))],
                )
        half = len(values) // 2
        indexes = np.arange(len(values))
        first = self._decode(decoder, values[:half], origin.take(indexes[:half]))
        second = self._decode(decoder, values[half:], origin.take(indexes[half:]))
        rejects = [(half + index, fault) for index, fault in second.rejects]
        return Decoded(
            rows=pa.concat_batches([first.rows, second.rows]),
            indexes=np.concatenate([first.indexes, half + second.indexes]),
            rejects=[*first.rejects, *rejects],
        )

    def _refresh_if_due(self) -> None:
        """Check at intervals whether the table has gained the columns left out so far."""
        is_due = self._clock() - self._checked_at > _REFRESH_S
        if is_due and any(decoder.left_out for decoder in self._decoders.values()):
            self._checked_at = self._clock()
            self._refresh()

    def _refresh(self) -> None:
        """Adopt columns that the table has gained meanwhile."""
        kind = self._ask_kind()
        if kind != self._kind:
            self._kind = kind
            self._decoders.clear()  # they are rebuilt with the new columns

    def _origin(self, partitions: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]) -> Origin:
        count = int(partitions.max(initial=-1)) + 1
        series = [f"kafka/{self._topic}/{number}" for number in range(count)]
        return Origin(series=series, codes=partitions, numbers=offsets)

    def _in_order(
        self, parts: Sequence[tuple[pa.RecordBatch, npt.NDArray[np.int64]]]
    ) -> tuple[pa.RecordBatch, npt.NDArray[np.int64]]:
        """Restore the order of rows that were decoded with different schemas."""
        if len(parts) == 1:
            return parts[0]
        indexes = np.concatenate([np.zeros(0, np.int64), *(indexes for _, indexes in parts)])
        order = np.argsort(indexes, kind="stable")
        rows = join_batches([empty_batch(self._kind.arrow), *(rows for rows, _ in parts)])
        (batch,) = rows.combine_chunks().to_batches() or [empty_batch(rows.schema)]
        return batch.take(pa.array(order)), indexes[order]

    def _numbered(self, rows: pa.RecordBatch, offsets: npt.NDArray[np.int64]) -> pa.RecordBatch:
        index = rows.schema.get_field_index("platform_sequence")
        return rows.set_column(index, rows.schema.field(index), pa.array(offsets))


def _first(
    part: tuple[pa.RecordBatch, npt.NDArray[np.int64]], count: int
) -> tuple[pa.RecordBatch, npt.NDArray[np.int64]]:
    """Keep the rows of the first N values."""
    rows, indexes = part
    is_first = indexes < count
    return rows.filter(pa.array(is_first)), indexes[is_first]


def _by_header(values: Sequence[bytes | None]) -> Mapping[bytes, npt.NDArray[np.int64]]:
    """Group values by their header; return the indexes of each group."""
    headers = {(value or _NOT_BYTES)[:HEADER_BYTES] for value in values}
    if len(headers) == 1:  # the usual case
        return {headers.pop(): np.arange(len(values))}
    groups: dict[bytes, list[int]] = {}
    for index, value in enumerate(values):
        groups.setdefault((value or _NOT_BYTES)[:HEADER_BYTES], []).append(index)
    return {header: np.array(indexes) for header, indexes in groups.items()}


def _taken(values: Sequence[bytes | None], indexes: npt.NDArray[np.int64]) -> list[bytes]:
    """Take values by index, none of which is None: they have a header."""
    taken = values if len(indexes) == len(values) else [values[index] for index in indexes.tolist()]
    return cast("list[bytes]", taken)


def _value_fault(value: bytes | None) -> Fault | None:
    """Describe what is wrong with a value without fetching a schema."""
    if value is None:
        return Fault(reason="a null value (tombstone)", cause=Cause.NULL_MESSAGE)
    if len(value) < HEADER_BYTES:
        reason = f"{len(value)} bytes are too short for a message"
    elif value[0] != MAGIC:
        reason = f"it starts with byte {value[0]}, not 0: not in a registry's wire format"
    else:
        return None
    return Fault(reason=reason, cause=Cause.BAD_WIRE_FORMAT)
