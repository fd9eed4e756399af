import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from k2cli.config import QuerySettings
from k2cli.errors import BadData
from k2cli.query.engine import open_locked, open_sql
from k2cli.query.protocol import Request

TIMES = "TIMESTAMPTZ '2024-08-08 23:55:48.055+00'"
# A value in SQL, its text in csv, and what a JSON parser reads of it.
VALUES = [
    pytest.param("true", "true", True, id="boolean"),
    pytest.param("CAST(7 AS TINYINT)", "7", 7, id="tinyint"),
    pytest.param(
        "170141183460469231731687303715884105727",
        "170141183460469231731687303715884105727",
        2**127 - 1,
        id="hugeint",
    ),
    pytest.param("CAST(1 AS UHUGEINT)", "1", 1, id="uhugeint"),
    pytest.param("CAST(12 AS BIGNUM)", "12", "12", id="bignum"),
    pytest.param(
        "CAST('61800' AS DECIMAL(18, 8))", "61800.00000000", "61800.00000000", id="decimal"
    ),
    pytest.param(
        "CAST(0.1 AS DOUBLE) + CAST(0.2 AS DOUBLE)", "0.30000000000000004", 0.1 + 0.2, id="double"
    ),
    pytest.param("CAST(0.1 AS FLOAT)", "0.1", 0.1, id="float"),
    pytest.param("CAST(1e300 AS DOUBLE)", "1e+300", 1e300, id="large-double"),
    pytest.param("CAST('nan' AS DOUBLE)", "nan", None, id="nan"),
    pytest.param("1 / 0", "inf", None, id="infinite-double"),
    pytest.param(
        TIMES, "2024-08-08T23:55:48.055000Z", "2024-08-08T23:55:48.055000Z", id="timestamptz"
    ),
    pytest.param(
        "CAST('2024-08-08 01:00:00+02' AS TIMESTAMPTZ)",
        "2024-08-07T23:00:00.000000Z",
        "2024-08-07T23:00:00.000000Z",
        id="timestamptz-with-an-offset",
    ),
    pytest.param(
        "TIMESTAMP '2024-08-08 23:55:48'",
        "2024-08-08T23:55:48.000000",
        "2024-08-08T23:55:48.000000",
        id="timestamp",
    ),
    pytest.param(
        "TIMESTAMP_NS '2024-08-08 23:55:48.000000001'",
        "2024-08-08T23:55:48.000000001",
        "2024-08-08T23:55:48.000000001",
        id="timestamp-ns",
    ),
    pytest.param(
        "TIMESTAMP_S '2024-08-08 23:55:48'",
        "2024-08-08T23:55:48.000000",
        "2024-08-08T23:55:48.000000",
        id="timestamp-s",
    ),
    pytest.param(
        "CAST(TIMESTAMP '2024-08-08 23:55:48' AS TIMESTAMP_MS)",
        "2024-08-08T23:55:48.000000",
        "2024-08-08T23:55:48.000000",
        id="timestamp-ms",
    ),
    pytest.param("DATE '2024-08-08'", "2024-08-08", "2024-08-08", id="date"),
    pytest.param("TIME '10:00:00.5'", "10:00:00.5", "10:00:00.5", id="time"),
    pytest.param("CAST('10:00:00+02' AS TIMETZ)", "10:00:00+02", "10:00:00+02", id="timetz"),
    pytest.param("INTERVAL 90 MINUTE", "01:30:00", "01:30:00", id="interval"),
    pytest.param(
        "CAST('0e4c2f9a-8bbd-4c56-9a57-6a7d9c1f0001' AS UUID)",
        "0e4c2f9a-8bbd-4c56-9a57-6a7d9c1f0001",
        "0e4c2f9a-8bbd-4c56-9a57-6a7d9c1f0001",
        id="uuid",
    ),
    pytest.param("CAST('\\xAAb' AS BLOB)", "\\xAAb", "\\xAAb", id="blob"),
    pytest.param("CAST('101' AS BIT)", "101", "101", id="bit"),
    pytest.param("CAST('a' AS ENUM('a', 'b'))", "a", "a", id="enum"),
    pytest.param(
        "'a,\"b\"' || chr(10) || 'é|\\'", 'a,"b"\né|\\', 'a,"b"\né|\\', id="text-with-separators"
    ),
    pytest.param("CAST('{\"a\": [1]}' AS JSON)", '{"a": [1]}', {"a": [1]}, id="json"),
    pytest.param("[1, NULL]", "[1,null]", [1, None], id="list"),
    pytest.param("CAST([1, 2] AS INTEGER[2])", "[1,2]", [1, 2], id="array"),
    pytest.param("MAP {'a\"': 'x,y'}", '{"a\\"":"x,y"}', {'a"': "x,y"}, id="map"),
    pytest.param("CAST(MAP {} AS MAP(VARCHAR, VARCHAR))", "{}", {}, id="empty-map"),
    pytest.param(
        "{'a b': 1, 'c': [CAST(1.5 AS DECIMAL(3, 2))]}",
        '{"a b":1,"c":["1.50"]}',
        {"a b": 1, "c": ["1.50"]},
        id="struct",
    ),
    pytest.param(
        f"[{{'t': {TIMES}}}]",
        '[{"t":"2024-08-08T23:55:48.055000Z"}]',
        [{"t": "2024-08-08T23:55:48.055000Z"}],
        id="list-of-structs",
    ),
    pytest.param(
        f"MAP {{{TIMES}: [DATE '2024-08-08']}}",
        '{"2024-08-08T23:55:48.055000Z":["2024-08-08"]}',
        {"2024-08-08T23:55:48.055000Z": ["2024-08-08"]},
        id="map-with-times-as-keys",
    ),
    pytest.param("row(1, 'x')", '{"v1":1,"v2":"x"}', {"v1": 1, "v2": "x"}, id="row"),
    pytest.param("CAST(NULL AS STRUCT(d DATE))", "", None, id="null-struct"),
    pytest.param("union_value(a := 1)", '{"a":1}', {"a": 1}, id="union"),
    pytest.param("NULL", "", None, id="null"),
    pytest.param(
        "CAST('infinity' AS TIMESTAMPTZ)", "infinity", "infinity", id="infinite-timestamp"
    ),
]


def written(form: str, sql: str) -> bytes:
    sink = io.BytesIO()
    request = Request(settings=QuerySettings(), files=[], text=sql, form=form, zone="UTC")
    with open_sql(request) as answer:
        answer.copy(form, sink)
    return sink.getvalue()


@pytest.mark.parametrize(("sql", "text", "value"), VALUES)
def test_every_type_has_its_text_and_json(sql: str, text: str, value: object) -> None:
    rows = list(csv.reader(io.StringIO(written("csv", f"SELECT 1 AS a, {sql} AS b").decode())))
    assert rows == [["a", "b"], ["1", text]]
    (line,) = written("ndjson", f"SELECT {sql} AS b").splitlines()
    assert json.loads(line, parse_constant=pytest.fail) == {"b": value}


@pytest.mark.parametrize(("sql", "text", "value"), VALUES[3:])
def test_every_type_goes_into_parquet_and_arrow(sql: str, text: str, value: object) -> None:
    del text
    statement = f"SELECT {sql} AS b FROM range(2)"
    table = pq.read_table(pa.BufferReader(written("parquet", statement)))
    with open_locked(QuerySettings(), []) as session:
        same = session.ask_sql(statement).table()
    assert (table.num_rows, same.num_rows) == (2, 2)
    assert same["b"].null_count == (
        2 if value is None and "nan" not in sql and "/" not in sql else 0
    )


def test_integers_that_no_reader_has_are_refused_not_rounded() -> None:
    with pytest.raises(BadData):
        written("parquet", f"SELECT {2**127 - 1} AS b")
    exact = pq.read_table(pa.BufferReader(written("parquet", f"SELECT {10**37} AS b")))
    assert exact["b"].to_pylist() == [10**37]


def test_csv_quotes_only_where_needed_and_tells_null_from_empty() -> None:
    text = written("csv", "SELECT 'a b' AS x, '' AS \"y,z\", NULL AS n, 'q\"' AS q")
    assert text == b'x,"y,z",n,q\na b,"",,"q"""\n'


def test_columns_of_the_same_or_a_strange_name_are_kept(tmp_path: Path) -> None:
    del tmp_path
    assert written("csv", 'SELECT 1 AS a, 2 AS a, 3 AS "q""x"') == b'a,a_1,"q""x"\n1,2,3\n'


def test_order_of_the_users_sql_is_kept() -> None:
    text = written("csv", "SELECT i FROM range(300000) t(i) ORDER BY i DESC")
    assert [int(line) for line in text.split()[1:]] == list(range(299_999, -1, -1))
