"""A schema against others and against a table; subjects are in test_schema_registry.py."""

from typing import Any

import pytest

from k2cli.avro.builtin import BUILTIN_SCHEMAS, builtin_schema
from k2cli.avro.level import Level
from k2cli.avro.named import NamedSchema
from k2cli.errors import BadData, UsageError
from k2cli.records import KINDS, QUOTES, TRADES
from k2cli.storage.lake import Lake
from k2cli.validation.compatibility import Verdict, check_schemas
from k2cli.validation.gate import check_table, kind_of_schema

VENUE = {"name": "venue", "type": ["null", "string"], "default": None}


def with_fields(name: str, *fields: dict[str, Any]) -> NamedSchema:
    return NamedSchema(name=name, avro={**TRADES.avro, "fields": [*TRADES.avro["fields"], *fields]})


OLD = with_fields("old")
WITH_DEFAULT = with_fields("middle", VENUE)
WITHOUT_DEFAULT = with_fields("new", {"name": "venue", "type": ["null", "string"]})


def outcome(verdict: Verdict) -> tuple[list[str], list[tuple[str | None, str | None]]]:
    return verdict.against, [(reason.writer, reason.field) for reason in verdict.reasons]


@pytest.mark.parametrize(
    ("level", "against", "reasons"),
    [
        (Level.NONE, ["middle"], []),
        (Level.BACKWARD, ["middle"], []),
        (Level.BACKWARD_TRANSITIVE, ["old", "middle"], [("old", "venue")]),
        (Level.FORWARD_TRANSITIVE, ["old", "middle"], []),
    ],
)
def test_only_a_transitive_level_compares_all_older_schemas(
    level: Level, against: list[str], reasons: list[tuple[str, str]]
) -> None:
    verdict = check_schemas([OLD, WITH_DEFAULT], WITHOUT_DEFAULT, level)
    assert outcome(verdict) == (against, reasons)
    assert verdict.document()["compatible"] is (not reasons)


@pytest.mark.parametrize("name", BUILTIN_SCHEMAS)
def test_the_name_of_the_record_implies_its_kind(name: str) -> None:
    kind = kind_of_schema(NamedSchema(name=name, avro=builtin_schema(name)))
    assert kind is KINDS["trades" if name.startswith("trade") else "quotes"]


@pytest.mark.parametrize(
    "avro", ["string", ["null", "string"], {"type": "record", "name": "com.k2.Own", "fields": []}]
)
def test_other_schemas_have_no_kind(avro: Any) -> None:
    with pytest.raises(UsageError, match=r"cannot infer the record kind of x from its name"):
        kind_of_schema(NamedSchema(name="x", avro=avro))


def test_a_table_fits_once_it_has_every_field(lake: Lake) -> None:
    verdict = check_table(lake, WITH_DEFAULT, None)
    assert [reason.text for reason in verdict.reasons] == ["the table lacks: add venue string"]
    assert verdict.hint == "k2 table evolve trades --schema middle"
    lake.open(TRADES).evolve(WITH_DEFAULT.avro, is_dry_run=False)
    assert check_table(lake, WITH_DEFAULT, None) == Verdict(
        schema="middle", against=[TRADES.table], level=None, reasons=[]
    )


def test_a_table_of_another_kind_does_not_fit(lake: Lake) -> None:
    verdict = check_table(lake, OLD, QUOTES)
    assert [reason.text for reason in verdict.reasons] == ["the schema is TradeV2, not QuoteV2"]


def test_only_the_schema_of_a_record_describes_rows() -> None:
    assert OLD.kind().arrow == TRADES.arrow
    with pytest.raises(BadData, match="x is not the schema of a record"):
        NamedSchema(name="x", avro="string").record()
    with pytest.raises(BadData, match="x: ") as caught:
        with_fields("x", {"name": "ratio", "type": "double"}).kind()
    assert caught.value.hint == "k2 schema validate x"
