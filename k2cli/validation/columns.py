"""Validate Parquet and Avro files against a schema, column by column."""

import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq

from k2cli.avro.builtin import builtin_name, builtin_schema
from k2cli.avro.named import NamedSchema
from k2cli.codec.container import Container, ContainerDecoder
from k2cli.codec.resolve import Incompatible, RecordDecoder, record_name
from k2cli.columns import Ints
from k2cli.errors import BadData
from k2cli.records import arrow_field, arrow_to_avro_type, avro_to_arrow_schema
from k2cli.rejects import Cause, Fault, shown
from k2cli.validation.report import Part, Parts, Problem, problem_of

_BATCH_ROWS: Final = 65_536
_UTC: Final = ("UTC", "Etc/UTC", "GMT", "Z", "+00:00")
_INT_BITS: Final = 32


def avro_parts(file: BinaryIO, expected: NamedSchema | None) -> tuple[str, Parts]:
    """Read the header of an Avro container; return the expected schema and the records.

    The default schema is k2's of the same name, or else the file's own.

    Raises:
        BadData: it is not a container of records.
    """
    container = Container(file)
    against = expected or _schema_of(container.schema)
    return against.name, _container_parts(container, against)


def _schema_of(schema: Any) -> NamedSchema:
    name = record_name(schema) if isinstance(schema, dict) else None
    if name is None:
        raise BadData("the file does not contain records")
    if stem := builtin_name(name):
        return NamedSchema(name=stem, avro=builtin_schema(stem))
    return NamedSchema(name=name, avro=schema)


def _container_parts(container: Container, against: NamedSchema) -> Parts:
    schema = container.schema if isinstance(container.schema, dict) else {}
    if unfit := list(_unfit_fields(schema, against.avro)):
        yield Part(rows=0, problems=unfit)
        return
    decoder = RecordDecoder(schema, against.avro)
    for decoded in ContainerDecoder(schema, decoder.sources).decode(container.blocks()):
        problems = [
            *(problem_of(fault, row=index + 1) for index, fault in decoded.rejects),
            *_problems(decoder, decoded.rows, partial(_number, decoded.indexes)),
        ]
        yield Part(rows=decoded.rows.num_rows + len(decoded.rejects), problems=_in_order(problems))


def _number(indexes: Ints, row: int) -> int:
    return int(indexes[row]) + 1


def parquet_parts(raw: BinaryIO, expected: NamedSchema) -> Parts:
    """Check the rows of a Parquet file.

    Raises:
        BadData: it is not a Parquet file, or is corrupt.
    """
    expected.kind()  # all of its fields are columns
    with _parquet_errors():
        file = pq.ParquetFile(raw)
        columns = _columns(file.schema_arrow, expected.avro)
        schema, strange = _as_avro(columns, expected.avro)
        unfit = [each for each in _unfit_fields(schema, expected.avro) if each.field not in strange]
        if unfit := [*strange.values(), *unfit]:
            yield Part(rows=0, problems=unfit)
            return
        decoder = RecordDecoder(schema, expected.avro)
        first = 1
        names = [column.name for column in columns.values()]
        for batch in file.iter_batches(_BATCH_ROWS, columns=names):
            arrays = [batch[column.name].cast(column.type) for column in columns.values()]
            rows = pa.RecordBatch.from_arrays(arrays, names)
            rows.validate(full=True)  # that texts are UTF-8, for example
            problems = [
                *_problems(decoder, rows, partial(operator.add, first)),
                *_nulls_within(rows, first),
            ]
            yield Part(rows=rows.num_rows, problems=_in_order(problems))
            first += rows.num_rows


@contextmanager
def _parquet_errors() -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as exc:
        raise BadData(f"not a readable Parquet file: {exc}") from exc


def _columns(schema: pa.Schema, ours: Mapping[str, Any]) -> dict[str, pa.Field]:
    """Choose the columns that k2's fields are read from, with the types to read."""
    columns = {}
    for field in ours["fields"]:
        name = field["name"]
        names = (name, *field.get("aliases", ()))
        source = next((each for each in names if each in schema.names), None)
        if source is not None:
            plain, wanted = _plain(schema.field(source).type), arrow_field(name, field["type"]).type
            columns[name] = pa.field(source, wanted if plain == _plain(wanted) else plain)
    return columns


def _plain(of: pa.DataType) -> pa.DataType:
    """Return a type without text encodings and item names, which do not matter."""
    kind = pa.types
    if kind.is_dictionary(of):
        return _plain(of.value_type)
    if kind.is_list(of) or kind.is_large_list(of):
        return pa.list_(pa.field("element", _plain(of.value_type), nullable=False))
    if kind.is_map(of):
        value = pa.field("value", _plain(of.item_type), nullable=False)
        return pa.map_(_plain(of.key_type), value)
    if kind.is_large_string(of) or kind.is_string_view(of):
        of = pa.string()
    elif kind.is_signed_integer(of):
        of = pa.int64() if of.bit_width > _INT_BITS else pa.int32()
    elif kind.is_timestamp(of) and of.tz in _UTC:
        of = pa.timestamp(of.unit, "UTC")
    return of


def _as_avro(
    columns: Mapping[str, pa.Field], ours: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Problem]]:
    """Convert columns to a record schema; columns of unsupported types are problems."""
    wanted = avro_to_arrow_schema(ours)
    fields, strange = [], {}
    for name, column in columns.items():
        try:
            fields.append({"name": column.name, "type": arrow_to_avro_type(column.type)})
        except ValueError:
            reason = f"is {column.type}, not {wanted.field(name).type}"
            strange[name] = _unfit(name, reason)
    return {"type": "record", "name": ours["name"], "fields": fields}, strange


def _unfit(field: str, reason: str) -> Problem:
    return problem_of(Fault(reason=reason, cause=Cause.INCOMPATIBLE_SCHEMA, field=field))


def _nulls_within(rows: pa.RecordBatch, first: int) -> Iterator[Problem]:
    """Find lists and maps with a null where k2's have none."""
    for name in rows.schema.names:
        values = rows[name]
        is_map = pa.types.is_map(values.type)
        if is_map:
            of, inner = values.type.item_field, values.items
        elif pa.types.is_list(values.type):
            of, inner = values.type.value_field, values.flatten()
        else:
            continue
        if inner.null_count and not of.nullable:
            for row, held in enumerate(values.to_pylist()):
                if held and None in ([value for _, value in held] if is_map else held):
                    fault = Fault(
                        reason="contains a null", cause=Cause.MISSING, field=name, value=shown(held)
                    )
                    yield problem_of(fault, row=first + row)


def _unfit_fields(schema: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[Problem]:
    """List k2's fields that cannot be read with the writer's schema."""
    name = record_name(schema)
    if name != ours["name"]:
        yield _unfit("", f"the records are {name}, not {ours['name']}")
        return
    for field in ours["fields"]:
        try:
            RecordDecoder(schema, {**ours, "fields": [field]})
        except Incompatible as exc:
            yield _unfit(field["name"], exc.brief)
        except ValueError as exc:
            yield _unfit(field["name"], str(exc))


def _problems(
    decoder: RecordDecoder, rows: pa.RecordBatch, number: Callable[[int], int]
) -> Iterator[Problem]:
    for _, found in decoder.faults(rows):
        for row, fault in found.items():
            yield problem_of(fault, row=number(row))


def _in_order(problems: list[Problem]) -> list[Problem]:
    return sorted(problems, key=lambda problem: problem.row or 0)
