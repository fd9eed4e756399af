"""Check users' SQL: one statement that only reads and calls only harmless table functions.

The check works on DuckDB's parse tree, before anything is bound: merely binding some table
functions reads memory by pointer, enables logging, or runs unchecked SQL. It stops honest mistakes
and simple attacks. Accepted statements can still crash DuckDB or never end; therefore they run in a
separate process (`k2cli.query.worker`).
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import duckdb

from k2cli.errors import UsageError

MAX_BYTES: Final = 100_000
# Table functions that compute rows from their arguments or describe the catalog, and no others.
ALLOWED_TABLE_FUNCTIONS: Final = frozenset(
    {"range", "generate_series", "unnest", "json_each", "json_tree", "repeat", "repeat_row"}
    | {"summary", "test_all_types", "icu_calendar_names", "pg_timezone_names"}
    | {"duckdb_columns", "duckdb_constraints", "duckdb_databases", "duckdb_functions"}
    | {"duckdb_keywords", "duckdb_schemas", "duckdb_settings", "duckdb_tables", "duckdb_types"}
    | {"duckdb_views", "pragma_table_info"}
)
# Scalar functions that bind a statement given as text, or write.
_FORBIDDEN_FUNCTIONS: Final = frozenset({"json_serialize_plan", "write_log"})
_NAME: Final = re.compile(r'"((?:[^"]|"")*)"|\'((?:[^\']|\'\')*)\'|([^\W\d][\w$]*)')
_UNICODE_NAME: Final = re.compile(r"\bU&[\"']", re.IGNORECASE)
# Statements about tables have small answers, and must not see the view that holds an answer.
_ABOUT: Final = frozenset({"show", "describe", "desc", "summarize"})
_EXPLAIN_OPTIONS: Final = frozenset({"format", "analyze"})


@dataclass(frozen=True, slots=True)
class Checked:
    """A statement that may run, with its preparations."""

    preparations: Sequence[duckdb.Statement]  # of a PIVOT: the types of its columns
    statement: duckdb.Statement
    is_about_tables: bool


def check_statement(connection: duckdb.DuckDBPyConnection, text: str) -> Checked:
    """Parse the user's SQL and refuse everything except one statement that only reads.

    Raises:
        UsageError: it is too long, more than one statement, changes something, or calls a table
            function that is not allowed.
        duckdb.Error: it cannot be parsed.
    """
    size = len(text.encode())
    if size > MAX_BYTES:
        raise UsageError(f"the statement is {size:,} bytes long; the limit is {MAX_BYTES:,}")
    if "\0" in text:
        raise UsageError("the statement contains a NUL character")
    words = list(_words(text))
    if not words:
        raise UsageError("no SQL statement given")
    statements = _parsed(connection, text, words)
    is_about = words[0].text.lower() in _ABOUT
    return Checked(statements[:-1], statements[-1], is_about_tables=is_about)


@dataclass(frozen=True, slots=True)
class _Word:
    """A token of SQL: a name, keyword, string, number or the start of an operator."""

    text: str  # a name without quotes
    offset: int  # in the UTF-8 text


def _words(text: str) -> Iterator[_Word]:
    """Split SQL into tokens, without comments."""
    encoded = text.encode()
    offsets = [offset for offset, _ in duckdb.tokenize(text)]
    ends = [*offsets[1:], len(encoded)]
    for offset, end in zip(offsets, ends, strict=False):
        token = encoded[offset:end].decode(errors="replace")
        name = _NAME.match(token)
        if name is None:
            yield _Word(token[:1], offset)
        else:
            quoted, string, plain = name.groups()
            unquoted = quoted.replace('""', '"') if quoted is not None else string
            yield _Word(plain if unquoted is None else unquoted, offset)


def _parsed(
    connection: duckdb.DuckDBPyConnection, text: str, words: Sequence[_Word]
) -> list[duckdb.Statement]:
    statements: list[duckdb.Statement] = connection.extract_statements(text)
    if not statements:
        raise UsageError("no SQL statement given")
    # Only a PIVOT is parsed into several statements without separate texts.
    is_pivot = len(statements) > 1 and not any(each.query for each in statements)
    if len(statements) > 1 and not is_pivot:
        raise UsageError(f"expected one SQL statement, got {len(statements)}")
    statement = statements[-1]
    is_rewritten = statement.query.strip() not in text  # a PRAGMA, as a SELECT
    if statement.type == duckdb.StatementType.EXPLAIN:
        _check_explained(connection, text, words)
    elif statement.type != duckdb.StatementType.SELECT or is_rewritten:
        name = "PRAGMA" if is_rewritten else statement.type.name
        raise UsageError(f"{name} is not allowed: only statements that read, such as SELECT, are")
    else:
        _check_functions(connection, text, words, is_pivot=is_pivot)
    if statement.named_parameters:
        raise UsageError("parameters ($1, ?) are not supported: write the values")
    return statements


def _check_explained(
    connection: duckdb.DuckDBPyConnection, text: str, words: Sequence[_Word]
) -> None:
    rest = list(words[1:])  # after EXPLAIN
    if rest and rest[0].text.lower() == "analyze":
        del rest[0]
    if len(rest) > 1 and rest[0].text == "(" and rest[1].text.lower() in _EXPLAIN_OPTIONS:
        while rest and rest.pop(0).text != ")":
            pass
    if not rest:
        raise UsageError("this EXPLAIN is not allowed: only EXPLAIN [ANALYZE] of a SELECT")
    explained = text.encode()[rest[0].offset :].decode()
    _parsed(connection, explained, list(_words(explained)))


def _check_functions(
    connection: duckdb.DuckDBPyConnection, text: str, words: Sequence[_Word], *, is_pivot: bool
) -> None:
    (tree,) = connection.execute("SELECT json_serialize_sql(?)", [text]).fetchone() or ("",)
    try:
        document = json.loads(tree)
    except RecursionError as exc:
        raise UsageError("the statement is nested too deeply") from exc
    if not document["error"]:
        forbidden = _forbidden_in_tree(document)
    elif is_pivot:  # a PIVOT whose columns come from the data has no tree
        forbidden = _forbidden_in_words(connection, text, words)
    else:
        raise UsageError(f"this statement is not allowed: {document['error_message']}")
    for name in forbidden:
        raise UsageError(
            f"function {name} is not allowed",
            hint="query the tables trades and quotes; range, unnest and json_each are allowed, too",
        )


def _forbidden_in_tree(tree: object) -> Iterator[str]:
    """Find forbidden functions in a parse tree."""
    pending: list[Any] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, list):
            pending.extend(node)
        elif isinstance(node, dict):
            pending.extend(node.values())
            if node.get("type") == "TABLE_FUNCTION":
                name = str((node.get("function") or {}).get("function_name")).lower()
                if name not in ALLOWED_TABLE_FUNCTIONS:
                    yield name
            elif str(node.get("function_name")).lower() in _FORBIDDEN_FUNCTIONS:
                yield str(node["function_name"]).lower()


def _forbidden_in_words(
    connection: duckdb.DuckDBPyConnection, text: str, words: Sequence[_Word]
) -> Iterator[str]:
    """Find names before a parenthesis that are only table functions."""
    if _UNICODE_NAME.search(text):
        yield "U&"
    kinds: dict[str, set[str]] = {}
    for name, kind in connection.execute(
        "SELECT lower(function_name), function_type FROM duckdb_functions()"
    ).fetchall():
        kinds.setdefault(name, set()).add(kind)
    for word, following in pairwise(words):
        name = word.text.lower()
        is_table_function = {"table", "table_macro"} & kinds.get(name, set())
        is_other = {"scalar", "aggregate", "macro"} & kinds.get(name, set())
        is_forbidden = is_table_function and not is_other and name not in ALLOWED_TABLE_FUNCTIONS
        if following.text == "(" and (is_forbidden or name in _FORBIDDEN_FUNCTIONS):
            yield name
