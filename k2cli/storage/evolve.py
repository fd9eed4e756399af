"""Evolve tables: add and widen columns without rewriting files.

Iceberg allows this (https://iceberg.apache.org/spec/#schema-evolution): rows written before
have null in a new column, and a narrow number is read as the wide one.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.io.pyarrow import schema_to_pyarrow
from pyiceberg.schema import Schema
from pyiceberg.table import Table

from k2cli.codec.resolve import record_name, unfit_decimals
from k2cli.errors import BadData
from k2cli.records import RecordKind, arrow_field, is_wider
from k2cli.rejects import Cause, Fault, shown
from k2cli.storage.races import ATTEMPTS, too_many_races
from k2cli.storage.tables import RETRIES, RETRIES_KEY

_NO_RETRIES: Final = "0"  # in tables of k2 0.1.0; it makes other engines' rewrites fail


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A column to add, widen or make optional."""

    column: pa.Field  # the new column
    before: pa.Field | None  # None: it is new

    def __str__(self) -> str:
        """Describe the change."""
        name, of = self.column.name, self.column.type
        if self.before is None:
            return f"add {name} {of}"
        steps = []
        if of != self.before.type:
            steps.append(f"widen {name} {self.before.type} to {of}")
        if self.column.nullable and not self.before.nullable:
            steps.append(f"make {name} optional")
        return ", ".join(steps)


def arrow_columns(schema: Schema) -> pa.Schema:
    """Return a table's columns with the Arrow types that rows have in k2."""
    return pa.schema(map(_small, schema_to_pyarrow(schema, include_field_ids=False)))


def _small(field: pa.Field) -> pa.Field:
    """Undo pyiceberg's large types for text and lists."""
    of = field.type
    if pa.types.is_large_string(of):
        of = pa.string()
    elif pa.types.is_large_list(of):
        of = pa.list_(_small(of.value_field))
    elif pa.types.is_map(of):
        of = pa.map_(_small(of.key_field), _small(of.item_field))
    return field.with_type(of)


def fit_rows(table: Table, kind: RecordKind, rows: pa.Table) -> pa.Table:
    """Return rows with the table's column widths.

    An outdated table may have narrower columns: values that fit are kept exactly.

    Raises:
        BadData: it lacks a column, or has a narrower one that a value does not fit.
    """
    hint = f"k2 table evolve {kind.name}"
    columns = arrow_columns(table.schema())
    for field in rows.schema:
        if field.name not in columns.names:
            reason = f"table {kind.table} has no column {field.name} of type {field.type} yet"
            raise BadData(reason, hint=hint)
    for fault in unfit_rows(table, kind, rows).values():
        raise BadData(fault.reason, hint=hint)
    for index, field in enumerate(rows.schema):
        of = columns.field(field.name).type
        if is_wider(of, field.type) or is_wider(field.type, of):
            rows = rows.set_column(index, field.with_type(of), rows[index].cast(of))
    return rows


def unfit_rows(table: Table, kind: RecordKind, rows: pa.Table) -> dict[int, Fault]:
    """Find the rows with a value that does not fit the table: too many digits, or null.

    Returns the fault of each, by row index.
    """
    columns = arrow_columns(table.schema())
    faults: dict[int, Fault] = {}
    for field in rows.schema:
        column = columns.field(field.name) if field.name in columns.names else field
        of, values = column.type, rows[field.name]
        if not column.nullable and values.null_count:
            reason = f"{field.name} is null, and every row of {kind.table} needs one"
            fault = Fault(reason=reason, cause=Cause.MISSING, field=field.name)
            for row in np.flatnonzero(values.is_null().to_numpy()).tolist():
                faults.setdefault(row, fault)
        if is_wider(field.type, of):
            for row in np.flatnonzero(_is_unfit(values.combine_chunks(), of)).tolist():
                value = values[row].as_py()
                brief = f"does not fit {of}, its type in {kind.table}"
                is_decimal = pa.types.is_decimal(of)
                fault = Fault(
                    reason=f"{field.name} {value} {brief}",
                    cause=Cause.DECIMAL_OVERFLOW if is_decimal else Cause.OUT_OF_RANGE,
                    field=field.name,
                    value=shown(value),
                    brief=brief,
                )
                faults.setdefault(row, fault)
    return faults


def _is_unfit(values: pa.Array, narrow: pa.DataType) -> npt.NDArray[np.bool_]:
    if pa.types.is_decimal(narrow):
        return unfit_decimals(values, narrow.precision, is_signed=True)
    is_changed = pc.not_equal(values.cast(narrow, safe=False).cast(values.type), values)
    is_unfit: npt.NDArray[np.bool_] = is_changed.fill_null(False).to_numpy(zero_copy_only=False)
    return is_unfit


def evolve_table(
    table: Table, kind: RecordKind, avro: Mapping[str, Any], *, is_dry_run: bool
) -> list[str]:
    """Evolve a table to an Avro schema of its kind; return the changes as text.

    See `LakeTable.evolve`.
    """
    for _ in range(ATTEMPTS):
        changes = list(_changes(kind, avro, arrow_columns(table.schema())))
        texts = [str(change) for change in changes]
        is_retried = table.properties.get(RETRIES_KEY) != _NO_RETRIES
        if not is_retried:
            texts.append(f"set {RETRIES_KEY} {_NO_RETRIES} to {RETRIES}")
        if not texts or is_dry_run:
            return texts
        try:
            with table.transaction() as transaction:
                if changes:
                    with transaction.update_schema() as update:
                        update.union_by_name(pa.schema([change.column for change in changes]))
                if not is_retried:
                    transaction.set_properties({RETRIES_KEY: RETRIES})
        except CommitFailedException:  # another writer was faster: check again
            table.refresh()
            continue
        return texts
    raise too_many_races(table)


def _changes(kind: RecordKind, avro: Mapping[str, Any], columns: pa.Schema) -> Iterator[Change]:
    """Compare a schema with a table.

    Raises:
        BadData: the table cannot be evolved to this schema.
    """
    name = record_name(avro)
    if name != kind.avro["name"]:
        raise BadData(f"the schema is {name or 'another type'}, not {kind.avro['name']}")
    fields = {field["name"]: field for field in avro["fields"]}
    for needed in kind.arrow:
        if needed.name not in fields and not needed.nullable:
            raise BadData(f"the schema lacks field {needed.name}, which every row needs")
    for field in fields.values():
        change = _change(kind, field, columns)
        if change is not None:
            yield change


def _change(kind: RecordKind, field: Mapping[str, Any], columns: pa.Schema) -> Change | None:
    name = field["name"]
    try:
        wanted = _stored(arrow_field(name, field["type"], field.get("doc")))
    except ValueError as exc:
        raise BadData(f"field {name}: {exc}") from exc
    if name in columns.names:
        return _widened(kind, wanted, columns.field(name))
    _check_is_new(field, kind, columns)
    if not wanted.nullable and "default" not in field:
        raise BadData(
            f"field {name} is not optional, and rows written before have none",
            hint=f'use the type ["null", ...] with the default null: {name}',
        )
    return Change(column=wanted.with_nullable(True), before=None)


def _widened(kind: RecordKind, wanted: pa.Field, current: pa.Field) -> Change | None:
    """Compare a field with the column of its name."""
    name = wanted.name
    can_be_null = name in kind.arrow.names and kind.arrow.field(name).nullable
    if wanted.nullable and not (current.nullable or can_be_null):
        raise BadData(f"field {name} is optional, but every row of {kind.table} has one")
    is_same = wanted.type == current.type or is_wider(current.type, wanted.type)
    if not (is_same or is_wider(wanted.type, current.type)):
        raise BadData(
            f"field {name} is {wanted.type}, and column {name} of {kind.table} is {current.type}:"
            " that is another type, not a wider one"
        )
    of = current.type if is_same else wanted.type
    column = current.with_type(of).with_nullable(wanted.nullable or current.nullable)
    return None if column.equals(current) else Change(column=column, before=current)


def _check_is_new(field: Mapping[str, Any], kind: RecordKind, columns: pa.Schema) -> None:
    for alias in field.get("aliases", ()):
        if alias in columns.names:
            raise BadData(
                f"field {field['name']} would rename column {alias} of {kind.table}:"
                " columns are not renamed"
            )
    for column in columns.names:
        if column.lower() == field["name"].lower():
            raise BadData(
                f"field {field['name']} and column {column} of {kind.table} have the same name"
                " except for upper and lower case, which SQL does not distinguish"
            )


def _stored(field: pa.Field) -> pa.Field:
    """Return a field as a table can have it: all times in microseconds."""
    if pa.types.is_timestamp(field.type):
        return field.with_type(pa.timestamp("us", tz=field.type.tz))
    return field
