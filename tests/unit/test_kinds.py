"""Kinds are listed in one place, and everything about them is derived from it."""

import re
from typing import Any

import pytest
import typer

from k2cli.avro.builtin import BUILTIN_SCHEMAS
from k2cli.commands.app import app
from k2cli.ingestion.csv.layout import ASSET_CLASSES, load_layout
from k2cli.ingestion.exchanges import EXCHANGES
from k2cli.kinds import KindName
from k2cli.records import KINDS, QUOTES, TRADES, RecordKind, asset_classes, enum_values
from support.paths import REPOSITORY

_LIST = re.compile(r"""["']trades["'],?\s*(?:or|and|,)?\s*["']quotes["']""")


def test_kinds_are_those_that_are_named() -> None:
    assert list(KINDS) == [kind.value for kind in KindName]
    assert [kind.name for kind in KINDS.values()] == list(KindName)
    assert tuple(KINDS.values()) == (TRADES, QUOTES)


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_columns_of_note_are_columns(kind: RecordKind) -> None:
    noted = {kind.id_column, kind.partition_by, *kind.sort_by, *kind.compared}
    assert noted <= set(kind.arrow.names)
    assert load_layout(f"generic-{kind.name}").record == kind


def test_every_schema_that_comes_with_k2_is_of_a_kind() -> None:
    assert {path.stem for path in (REPOSITORY / "schemas").glob("*.avsc")} == set(BUILTIN_SCHEMAS)
    assert {kind for each in EXCHANGES.values() for kind in each.channels.values()} == set(KindName)


@pytest.mark.parametrize("group", ["query", "export"])
def test_every_kind_has_commands(group: str) -> None:
    root: Any = typer.main.get_command(app)
    commands = root.commands[group].commands
    assert set(KindName) <= set(commands)
    for kind in KindName:
        assert f"k2 {group} {kind} " in commands[kind].help


def test_values_of_enums_are_those_of_the_schemas() -> None:
    assert asset_classes() == ASSET_CLASSES == ("equities", "crypto", "futures", "options")
    assert enum_values(TRADES, "side") == ("BUY", "SELL", "SELL_SHORT", "UNKNOWN")
    assert enum_values(QUOTES, "asset_class") == asset_classes()
    assert enum_values(QUOTES, "symbol") == enum_values(TRADES, "nosuch") == ()


def test_no_module_lists_the_kinds_but_one() -> None:
    assert _LIST.search('("trades", "quotes")')
    found = [
        str(path.relative_to(REPOSITORY))
        for path in sorted((REPOSITORY / "k2cli").rglob("*.py"))
        if _LIST.search(path.read_text(encoding="utf-8"))
    ]
    assert found == []
