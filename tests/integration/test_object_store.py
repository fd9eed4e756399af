"""The whole way with the tables in S3: a SQL catalog, and an Iceberg REST catalog."""

import json
import re
import socket
import ssl
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import trustme
from pyiceberg.exceptions import CommitFailedException, TableAlreadyExistsError
from pyiceberg.io.pyarrow import PyArrowFileIO

from k2cli.config import load_settings
from k2cli.errors import ConfigError
from k2cli.pipelines.compact import CompactRun
from k2cli.query.engine import open_locked, open_session
from k2cli.query.questions import select_rows
from k2cli.query.selection import Selection
from k2cli.records import QUOTES, TRADES
from k2cli.simulator import SimulatorOptions, running_simulator
from k2cli.storage.append import OutcomeUnknown
from k2cli.storage.catalog import open_catalog
from k2cli.storage.compactplan import Choice
from k2cli.storage.lake import open_lake
from k2cli.storage.tables import create_table
from services.catalogproxy import CatalogProxy, running_proxy
from services.seaweedfs import SECRET_KEY, SeaweedFs
from services.tlsfront import tls_in_front
from support.builders import quotes_batch, trades_batch
from support.cluster import Cluster
from support.foreign import rewrite_as_another_engine
from support.running import K2, Run, k2_at
from support.waiting import PATIENCE_S, wait_for

DUMP = "BTCUSDT-trades-2024-08-08.csv"
IMPATIENT_MS = "4000"  # far more than the catalog takes, unless a test holds its answer back
LOAD = ("load", "csv", "--layout", "binance-trades")
COUNT = "select count(*), count(distinct message_id), sum(price), sum(quantity) from trades"
Properties = dict[str, str]


def variables(properties: Mapping[str, str]) -> dict[str, str]:
    """Write catalog properties as the K2_* variables that mean them."""
    names = {key: key.replace(".", "__").replace("-", "_").upper() for key in properties}
    return {f"K2_CATALOG_{names[key]}": value for key, value in properties.items()}


def config_file(home: Path, properties: Mapping[str, str]) -> None:
    """Write catalog properties into the config file of a home."""
    home.mkdir(exist_ok=True)
    lines = (f"{key} = {json.dumps(value)}\n" for key, value in properties.items())
    (home / "k2.toml").write_text("[catalog]\n" + "".join(lines))


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    """A file of 50 trades."""
    path = tmp_path / DUMP
    header = "id,price,qty,quote_qty,time,is_buyer_maker,is_best_match\n"
    price, quantity = "6180{}.01000000", "0.50000000"
    rows = (
        f"{n},{price.format(n % 10)},{quantity},30900,{1723160000000 + n},true,true\n"
        for n in range(50)
    )
    path.write_text(header + "".join(rows))
    return path


@pytest.fixture(params=["rest", "sql"])
def catalog(request: pytest.FixtureRequest, seaweedfs: SeaweedFs, tmp_path: Path) -> Properties:
    """An empty catalog of each kind, with its files in S3."""
    return seaweedfs.catalog_properties(request.param, folder=tmp_path)


@pytest.fixture
def rest(seaweedfs: SeaweedFs) -> Properties:
    return seaweedfs.catalog_properties("rest")


@pytest.fixture
def k2(home: Path, rest: Properties) -> K2:
    """Runs k2 on an empty REST catalog."""
    return k2_at(home, variables(rest))


@pytest.fixture
def proxy(rest: Properties) -> Iterator[CatalogProxy]:
    with running_proxy(rest["uri"]) as proxy:
        yield proxy


@pytest.fixture
def spoiled(home: Path, rest: Properties, proxy: CatalogProxy) -> K2:
    """Runs k2 on the same catalog through the proxy, with little patience."""
    impatient = {"uri": proxy.url, "rest.client.socket-timeout-ms": IMPATIENT_MS}
    return k2_at(home, variables({**rest, **impatient}))


def counted(k2: K2) -> list[str]:
    """Ask for rows, ids, and exact sums of prices and quantities."""
    line: str = k2("query", "sql", COUNT, "--format", "csv").stdout.splitlines()[1]
    return line.split(",")


OF_DUMP = ["50", "50", "3090225.50000000", "25.00000000"]


def test_every_command_works_with_keys_from_the_file(
    home: Path, catalog: Properties, dump: Path
) -> None:
    config_file(home, catalog)
    k2 = k2_at(home)
    assert "loaded=1" in k2(*LOAD, dump).stderr
    assert "loaded before, skipped" in k2(*LOAD, dump).stderr
    assert counted(k2) == OF_DUMP
    assert k2("export", "trades", "--layout", "binance-trades").stdout == "".join(
        dump.read_text().splitlines(keepends=True)[1:]
    )
    assert k2("load", "history").stdout.count(DUMP) == 1
    (trades, quotes) = json.loads(k2("table", "list", "--format", "json").stdout)
    assert (trades["rows"], quotes["rows"]) == (50, 0)
    assert trades["location"].startswith("s3://")
    assert "location" in k2("table", "describe", "trades").stdout
    assert k2("table", "snapshots", "trades").stdout.count("\n") == 2
    assert "BTCUSDT,trades,50," in k2("query", "symbols", "--format", "csv").stdout
    assert k2("query", "quotes").stdout.count("\n") == 1


def test_a_load_is_undone_in_files_that_hold_other_rows(
    home: Path, catalog: Properties, dump: Path, tmp_path: Path
) -> None:
    k2 = k2_at(home, variables(catalog))
    month = tmp_path / "BTCUSDT-trades-2024-08.csv"
    month.write_text(re.sub("^(?=[0-9])", "7", dump.read_text(), flags=re.MULTILINE))  # other ids
    k2(*LOAD, dump, month)
    with open_lake(load_settings({"K2_HOME": str(home), **variables(catalog)})) as lake:
        rewrite_as_another_engine(lake.open(TRADES).iceberg, is_expiring=False)
    assert "rows=50 files=1" in k2("load", "undo", month).stderr
    assert counted(k2) == OF_DUMP
    assert k2("load", "history").stdout.count(str(tmp_path)) == 1


def test_answers_are_those_of_the_embedded_tables(tmp_path: Path, catalog: Properties) -> None:
    answers = []
    for name, properties in (("s3", catalog), ("embedded", {})):
        env = {"K2_HOME": str(tmp_path / name), **variables(properties)}
        with open_lake(load_settings(env), create=True) as lake:
            lake.open(TRADES).append(pa.Table.from_batches([trades_batch(500)]))
            lake.open(QUOTES).append(pa.Table.from_batches([quotes_batch(500)]))
        k2 = k2_at(tmp_path / name, variables(properties))
        span = ("--order", "desc", "--start", "2024-08-08T23:56")
        answers.append(
            [
                k2("query", kind, "--symbol", "BTCUSDT", *span, "--format", fmt).stdout_bytes
                for kind in ("trades", "quotes")
                for fmt in ("csv", "ndjson", "parquet", "arrow")
            ]
        )
    assert answers[0] == answers[1]
    assert all(len(answer) > 1_000 for answer in answers[0])


def test_a_stream_goes_straight_into_the_table(k2: K2) -> None:
    with running_simulator(SimulatorOptions(first_id=100)) as simulator:
        args = ("--url", simulator.url, "--symbols", "BTCUSDT", "--max-messages", 3_000)
        sums = json.loads(
            k2("stream", "binance", *args, "--flush-rows", 1_000, "--summary", "json").stdout
        )
    assert (sums["rows"], sums["rejects"], sums["duplicates"]) == (3_000, 0, 0)
    assert counted(k2)[:2] == ["3000", "3000"]


def test_a_stream_goes_through_kafka(cluster: Cluster, rest: Properties, topic_name: str) -> None:
    topic = f"{topic_name}.trades"
    cluster.create(topic)
    k2 = k2_at(cluster.home, {**_k2_variables(cluster.env), **variables(rest)})
    with running_simulator(SimulatorOptions(first_id=100)) as simulator:
        to = ("--to", "kafka", "--topic", topic, "--max-messages", 3_000)
        k2("stream", "binance", "--url", simulator.url, "--symbols", "BTCUSDT,ETHUSDT", *to)
    consume = ("consume", "--topic", topic, "--group", topic_name, "--until-end")
    first = json.loads(k2(*consume, "--batch-rows", 1_000, "--summary", "json").stdout)
    assert (first["messages"], first["rows"], first["rejects"]) == (3_000, 3_000, 0)
    assert json.loads(k2(*consume, "--summary", "json").stdout)["messages"] == 0
    straight = k2("query", "trades", "--columns", "price,quantity", "--format", "arrow")
    rows = pa.ipc.open_stream(straight.stdout_bytes).read_all()
    price, quantity = (str(pa.compute.sum(rows[name])) for name in ("price", "quantity"))
    assert counted(k2) == ["3000", "3000", price, quantity]


def _k2_variables(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith("K2_")}


def test_two_writers_of_one_stream_write_each_trade_once(
    tmp_path: Path, catalog: Properties
) -> None:
    settings = load_settings({"K2_HOME": str(tmp_path), **variables(catalog)})
    rows = pa.Table.from_batches([trades_batch(400, symbol="BTCUSDT")])
    failures: list[BaseException] = []
    together = threading.Barrier(2)

    def write(size: int) -> None:
        try:
            with open_lake(settings) as lake:
                together.wait(PATIENCE_S)
                for first in range(0, 400, size):
                    lake.open(TRADES).append(rows.slice(first, size))
        except BaseException as exc:
            failures.append(exc)
            raise

    with open_lake(settings, create=True):
        pass
    writers = [threading.Thread(target=write, args=(size,)) for size in (40, 50)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert failures == []
    k2 = k2_at(tmp_path, variables(catalog))
    numbers = k2("query", "trades", "--columns", "source_sequence", "--format", "csv").stdout
    assert numbers.splitlines()[1:] == [str(1_000 + n) for n in range(400)]


def test_a_table_that_another_made_meanwhile_is_left_as_it_is(catalog: Properties) -> None:
    identifier = ("market_data", TRADES.table)
    with closing(open_catalog(catalog)) as opened:
        opened.create_namespace("market_data")
        create_table(opened, identifier, TRADES)
        made = opened.load_table(identifier).metadata
        with pytest.raises((TableAlreadyExistsError, CommitFailedException)):
            create_table(opened, identifier, TRADES)
        assert opened.load_table(identifier).metadata == made


def test_old_files_go_from_the_store(tmp_path: Path, catalog: Properties) -> None:
    env = {"K2_HOME": str(tmp_path), "K2_TABLE_KEEP_SNAPSHOTS": "4", **variables(catalog)}
    with open_lake(load_settings(env), create=True) as lake:
        for n in range(12):
            rows = pa.Table.from_batches([trades_batch(1, source_sequence=n)])
            lake.open(TRADES).append(rows)
        table = lake.open(TRADES).iceberg
        assert 4 <= len(table.metadata.snapshots) <= 5
        lists = {snapshot.manifest_list for snapshot in table.metadata.snapshots}
        manifests = {
            m.manifest_path for s in table.metadata.snapshots for m in s.manifests(table.io)
        }
        assert isinstance(table.io, PyArrowFileIO)
        scheme, bucket, path = PyArrowFileIO.parse_location(f"{table.location()}/metadata")
        store = table.io.fs_by_scheme(scheme, bucket)
        found = store.get_file_info(pa.fs.FileSelector(path, recursive=True))
    avro = {f"s3://{info.path}" for info in found if info.path.endswith(".avro")}
    assert avro == lists | manifests
    assert len(k2_at(tmp_path, variables(catalog))("query", "trades").stdout.splitlines()) == 13


def _no_progress(*_: object) -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(lambda _: None)


def test_a_day_is_compacted_in_the_store(tmp_path: Path, catalog: Properties) -> None:
    config = load_settings({"K2_HOME": str(tmp_path), **variables(catalog)})
    with open_lake(config, create=True) as lake:
        table = lake.open(TRADES)
        for exchange in ("BINANCE", "BINANCE_US"):
            table.append(pa.Table.from_batches([trades_batch(9, exchange=exchange)]))
        run = CompactRun(config=config, on_plan=lambda *_: None, progress=_no_progress)
        run.compact([TRADES], Choice(target_bytes=128_000_000))
        assert (run.totals.files_before, run.totals.files_after) == (2, 1)
        info = lake.open(TRADES).describe()
        assert (info.rows, info.files) == (18, 1)
        assert table.append(pa.Table.from_batches([trades_batch(9)])).rows == 0


def test_keys_that_the_catalog_hands_out_win(
    home: Path, rest: Properties, proxy: CatalogProxy, dump: Path
) -> None:
    keys = ("s3.access-key-id", "s3.secret-access-key")
    proxy.table_config = {key: rest[key] for key in keys}
    wrong = {**rest, "uri": proxy.url, **dict.fromkeys(keys, "wrong")}
    k2_at(home, variables(rest))(*LOAD, dump)
    k2 = k2_at(home, variables(wrong))
    assert counted(k2) == OF_DUMP
    proxy.table_config = {}
    assert "ACCESS_DENIED" in k2("query", "trades", code=3).stderr


@pytest.fixture
def tables(home: Path, rest: Properties) -> None:
    """Make the tables of the REST catalog."""
    with open_lake(load_settings({"K2_HOME": str(home), **variables(rest)}), create=True):
        pass


@pytest.mark.usefixtures("tables")
def test_a_commit_whose_answer_is_lost_has_landed(
    k2: K2, spoiled: K2, proxy: CatalogProxy, dump: Path
) -> None:
    proxy.loses_commit_answers = True
    assert "loaded=1" in spoiled(*LOAD, dump).stderr
    assert counted(k2) == OF_DUMP


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("fault", ["garbles_commit_answers", "repeats_commits"])
def test_a_commit_whose_answer_is_wrong_has_landed(
    k2: K2, spoiled: K2, proxy: CatalogProxy, dump: Path, fault: str
) -> None:
    setattr(proxy, fault, True)
    assert "loaded=1" in spoiled(*LOAD, dump).stderr
    assert counted(k2) == OF_DUMP
    assert "loaded before, skipped" in spoiled(*LOAD, dump).stderr


@pytest.mark.usefixtures("tables")
def test_a_stream_whose_commits_are_repeated_writes_once(
    home: Path, rest: Properties, proxy: CatalogProxy
) -> None:
    settings = load_settings({"K2_HOME": str(home), **variables({**rest, "uri": proxy.url})})
    proxy.repeats_commits = True
    with open_lake(settings) as lake:
        for count in (10, 20):  # the second has the first ten again
            rows = pa.Table.from_batches([trades_batch(count, symbol="BTCUSDT")])
            assert lake.open(TRADES).append(rows).rows == 10
        assert len(lake.open(TRADES).iceberg.scan().to_arrow()) == 20


@pytest.mark.usefixtures("tables")
def test_a_commit_that_lands_late_has_its_files(
    k2: K2, spoiled: K2, proxy: CatalogProxy, dump: Path
) -> None:
    proxy.commits_held.clear()
    failed = spoiled(*LOAD, dump, code=5)
    assert "commit outcome unknown for market_data.trades_v2" in failed.stderr
    assert "hint: run it again" in failed.stderr
    assert k2("query", "trades").stdout.count("\n") == 1
    proxy.commits_held.set()
    wait_for(lambda: len(proxy.late_statuses) == len(proxy.held_commits))
    # The load asked three times before it gave up: one of the requests lands.
    assert sorted(proxy.late_statuses) == [200, 409, 409]
    assert counted(k2) == OF_DUMP
    assert "loaded before, skipped" in k2(*LOAD, dump).stderr


@pytest.mark.usefixtures("tables")
def test_rows_of_a_commit_that_lands_late_are_not_written_again(
    home: Path, rest: Properties, proxy: CatalogProxy
) -> None:
    impatient = {**rest, "uri": proxy.url, "rest.client.socket-timeout-ms": IMPATIENT_MS}
    settings = load_settings({"K2_HOME": str(home), **variables(impatient)})
    rows = pa.Table.from_batches([trades_batch(10, symbol="BTCUSDT")])
    with open_lake(settings) as lake:
        proxy.commits_held.clear()
        with pytest.raises(OutcomeUnknown):
            lake.open(TRADES).append(rows)
        proxy.commits_held.set()
        assert proxy.has_late_status.wait(PATIENCE_S)
        again = lake.open(TRADES).append(rows)
        assert (again.rows, again.duplicates) == (0, 10)
        assert len(lake.open(TRADES).iceberg.scan().to_arrow()) == 10


@pytest.mark.usefixtures("tables")
def test_a_stream_repeats_a_commit_that_may_land_yet(
    home: Path, rest: Properties, proxy: CatalogProxy
) -> None:
    impatient = {**rest, "uri": proxy.url, "rest.client.socket-timeout-ms": IMPATIENT_MS}
    settings = load_settings({"K2_HOME": str(home), **variables(impatient)})
    rows = pa.Table.from_batches([trades_batch(10, symbol="BTCUSDT")])
    with open_lake(settings) as lake:
        proxy.commits_held.clear()

        def release() -> None:
            wait_for(lambda: len(proxy.held_commits) == 2)  # in the second attempt
            proxy.commits_held.set()

        with ThreadPoolExecutor(1) as executor:
            released = executor.submit(release)
            commit = lake.open(TRADES).append(rows)
            released.result()
        assert commit.rows + commit.duplicates == 10
        assert proxy.has_late_status.wait(PATIENCE_S)
        assert len(lake.open(TRADES).iceberg.scan().to_arrow()) == 10


CLOSED = "http://127.0.0.1:1"
KEYS = "hint: check s3.access-key-id, s3.secret-access-key and s3.region under [catalog]"
WRONG = [
    ("sql", {"s3.secret-access-key": "wrong"}, 3, ["ACCESS_DENIED", KEYS]),
    ("sql", {"s3.access-key-id": "wrong"}, 3, ["ACCESS_DENIED", KEYS]),
    ("rest", {"s3.secret-access-key": "wrong"}, 3, ["ACCESS_DENIED", KEYS]),
    (
        "rest",
        {"client.secret-access-key": "wrong"},
        3,
        ["rejected the credentials", "hint: check token"],
    ),
    ("rest", {"rest.sigv4-enabled": "false"}, 3, ["rejected the credentials", "hint: check token"]),
    ("rest", {"rest.sigv4-enabled": "maybe"}, 3, ["catalog.rest.sigv4-enabled"]),
    (
        "rest",
        {"rest.signing-region": "", "client.region": ""},
        3,
        ["requires a signing region", "hint: set rest.signing-region"],
    ),
    ("rest", {"warehouse": "s3://nowhere"}, 4, ["there is no table trades_v2", "hint: "]),
    ("rest", {"uri": CLOSED}, 5, ["cannot be reached", "hint: check uri"]),
    ("rest", {"uri": "catalog.example.com"}, 3, ["[catalog] cannot be used", "hint: k2 config"]),
    ("rest", {"rest.client.socket-timeout-ms": "soon"}, 3, ["[catalog] cannot be used"]),
    ("sql", {"s3.endpoint": CLOSED}, 5, ["NETWORK_CONNECTION", "hint: check catalog.s3.endpoint"]),
    ("sql", {"warehouse": "ftp://x/y"}, 3, ["unknown scheme ftp://", "hint: use one of abfs"]),
    (
        "sql",
        {"warehouse": ""},
        3,
        ["catalog.warehouse, the location of new tables, is not set", "K2_CATALOG_WAREHOUSE"],
    ),
    ("sql", {"type": "sqll"}, 3, ["'sqll' is not a valid CatalogType", "hint: k2 config show"]),
    (
        "sql",
        {"uri": f"postgresql+pg8000://me:{SECRET_KEY}@127.0.0.1:1/k2"},
        3,
        ["needs the package pg8000", "hint: pip install 'pg8000'"],
    ),
    ("sql", {"uri": "oracle9://x"}, 3, ["sqlalchemy.dialects:oracle9"]),
    ("sql", {"uri": ""}, 3, ["catalog.uri is not set", "K2_CATALOG_URI"]),
]


@pytest.mark.parametrize("case", WRONG, ids=lambda case: f"{case[0]}-{next(iter(case[1]))}")
def test_a_wrong_setting_is_named_and_no_secret_shown(
    stored: dict[str, Properties], home: Path, case: tuple[str, Properties, int, list[str]]
) -> None:
    kind, over, code, said = case
    failed = k2_at(home, variables({**stored[kind], **over}))("query", "trades", code=code)
    assert failed.stdout == ""
    for words in said:
        assert words in failed.stderr
    assert SECRET_KEY not in failed.stderr


@pytest.fixture(scope="module")
def stored(seaweedfs: SeaweedFs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Properties]:
    """A catalog of each kind that holds 50 trades."""
    folder = tmp_path_factory.mktemp("stored")
    catalogs = {
        "rest": seaweedfs.catalog_properties("rest"),
        "sql": seaweedfs.catalog_properties("sql", folder=folder),
    }
    for properties in catalogs.values():
        settings = load_settings({"K2_HOME": str(folder), **variables(properties)})
        with open_lake(settings, create=True) as lake:
            lake.open(TRADES).append(pa.Table.from_batches([trades_batch(50)]))
    return catalogs


def test_signing_without_keys_says_which_to_set(
    stored: dict[str, Properties], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    keyless = {k: v for k, v in stored["rest"].items() if not k.startswith("client.")}
    failed = k2_at(home, variables(keyless))("query", "trades", code=3)
    assert "requires signing keys, but none are configured" in failed.stderr
    assert "K2_CATALOG_CLIENT__ACCESS_KEY_ID" in failed.stderr


def test_keys_are_found_where_other_tools_find_them(
    stored: dict[str, Properties], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    properties = stored["sql"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", properties["s3.access-key-id"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", properties["s3.secret-access-key"])
    kept = ("s3.access-key-id", "s3.secret-access-key", "s3.region")
    keyless = {key: value for key, value in properties.items() if key not in kept}
    assert counted(k2_at(home, variables(keyless)))[0] == "50"


def test_glue_without_a_region_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_REGION", raising=False)
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    failed = k2_at(home, {"K2_CATALOG_TYPE": "glue"})("query", "trades", code=3)
    assert "You must specify a region" in failed.stderr
    assert "hint: set client.region" in failed.stderr


def test_a_catalog_that_never_answers_is_given_up(
    stored: dict[str, Properties], home: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hole:
        url = f"http://127.0.0.1:{hole.getsockname()[1]}"
        silent = {"uri": url, "rest.client.socket-timeout-ms": "200"}
        failed = k2_at(home, variables({**stored["rest"], **silent}))("query", "trades", code=5)
    assert "the catalog cannot be reached, or does not answer" in failed.stderr


def test_a_private_authority_is_trusted_by_catalog_and_store(
    stored: dict[str, Properties], tmp_path: Path, run: Run
) -> None:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    properties = stored["rest"]
    with (
        tls_in_front(properties["uri"], context) as uri,
        tls_in_front(properties["s3.endpoint"], context) as endpoint,
    ):
        env = variables({**properties, "uri": uri, "s3.endpoint": endpoint})
        env |= {"REQUESTS_CA_BUNDLE": "", "CURL_CA_BUNDLE": ""}
        trusted = {**env, "SSL_CERT_FILE": str(tmp_path / "ca.pem")}
        answer = run(["query", "sql", "select count(*) from trades"], env=trusted)
        assert answer.stdout.split() == ["count_star()", "50"], answer.stderr
        failed = run(["query", "trades"], env={**env, "SSL_CERT_FILE": ""})
    assert (failed.exit_code, failed.stdout) == (5, "")
    assert "TLS with the catalog failed" in failed.stderr


def test_a_bucket_that_is_gone_is_told(home: Path, seaweedfs: SeaweedFs, tmp_path: Path) -> None:
    properties = seaweedfs.catalog_properties("sql", folder=tmp_path)
    bucket = f"gone-{uuid.uuid4().hex[:12]}"
    config_file(home, {**properties, "warehouse": f"s3://{bucket}/lake"})
    with open_lake(load_settings({"K2_HOME": str(home)}), create=True):
        pass
    with seaweedfs.client("s3") as store:
        for found in store.list_objects_v2(Bucket=bucket)["Contents"]:
            store.delete_object(Bucket=bucket, Key=found["Key"])
        store.delete_bucket(Bucket=bucket)
    failed = k2_at(home)("query", "trades", code=6)
    assert "a file of the table is missing" in failed.stderr
    assert f"'{bucket}/lake/" in failed.stderr
    assert "hint: does the bucket still exist?" in failed.stderr


def test_a_password_in_the_address_is_not_shown(home: Path) -> None:
    address = {"type": "sql", "uri": "sqlite://me:hush@there/x", "warehouse": "s3://x"}
    for properties in (address, {"uri": "mysql://me:hush@there/x"}):
        failed = k2_at(home, variables(properties))("query", "trades", code=3)
        assert "cannot be used: " in failed.stderr
        assert "hush" not in failed.stderr


def test_a_file_that_is_gone_from_the_store_is_told(k2: K2, home: Path, rest: Properties) -> None:
    settings = load_settings({"K2_HOME": str(home), **variables(rest)})
    with open_lake(settings, create=True) as lake:
        lake.open(TRADES).append(pa.Table.from_batches([trades_batch(5)]))
        (path,) = lake.open(TRADES).plan().paths
        lake.open(TRADES).iceberg.io.delete(path)
    failed = k2("query", "trades", code=5)
    assert "a data file no longer exists" in failed.stderr
    assert "hint: run it again" in failed.stderr


ELSEWHERE = "s3://warehouse/elsewhere/other.parquet"
REFUSED = [
    ("from duckdb_secrets(redact=false)", 2, "function duckdb_secrets is not allowed"),
    (f"from read_parquet('{ELSEWHERE}')", 2, "function read_parquet is not allowed"),
    (f"from '{ELSEWHERE}'", 2, "disabled by configuration"),
    (f"from read_text('{ELSEWHERE}')", 2, "function read_text is not allowed"),
    ("from glob('s3://warehouse/**')", 2, "function glob is not allowed"),
    ("from read_text('http://127.0.0.1:1/x')", 2, "function read_text is not allowed"),
    (f"copy trades to '{ELSEWHERE}'", 2, "COPY is not allowed"),
    ("create secret s (type s3)", 2, "CREATE is not allowed"),
    ("drop secret k2_0", 2, "DROP is not allowed"),
    ("set s3_endpoint = '127.0.0.1:1'", 2, "SET is not allowed"),
    ("load httpfs", 2, "LOAD is not allowed"),
]


@pytest.mark.parametrize(("sql", "code", "said"), REFUSED)
def test_sql_reaches_nothing_else_in_the_store(
    stored: dict[str, Properties], home: Path, sql: str, code: int, said: str
) -> None:
    properties = stored["sql"]
    with PyArrowFileIO(properties).new_output(ELSEWHERE).create(overwrite=True) as stream:
        stream.write(b"not for this query")
    failed = k2_at(home, variables(properties))("query", "sql", sql, code=code)
    assert (failed.stdout, said in failed.stderr) == ("", True), failed.stderr
    assert SECRET_KEY not in failed.stderr


@pytest.mark.parametrize(
    "sql",
    [
        "from duckdb_settings()",
        "explain from trades",
    ],
)
def test_sql_sees_no_secret(stored: dict[str, Properties], home: Path, sql: str) -> None:
    settings = load_settings({"K2_HOME": str(home), **variables(stored["sql"])})
    with open_lake(settings) as lake:
        plan = lake.open(TRADES).plan()
    assert plan.s3 is not None
    plan = replace(plan, s3=replace(plan.s3, session_token="hush", secret="hush"))
    with open_locked(settings.query, [plan]) as session:
        answer = session.ask_sql(sql).table()
    assert "hush" not in str(answer.to_pylist())


@pytest.mark.parametrize(
    "secret",
    ["it's", 'a"b', "c\\d", "e;f--g", "h\ni"],
    ids=["apostrophe", "quote", "backslash", "semicolon", "newline"],
)
def test_any_secret_is_handed_over_and_none_shown(
    stored: dict[str, Properties], home: Path, secret: str
) -> None:
    """It is not the store's secret; what matters is that DuckDB takes it, and asks with it."""
    settings = load_settings({"K2_HOME": str(home), **variables(stored["sql"])})
    with open_lake(settings) as lake:
        plan = lake.open(TRADES).plan()
    assert plan.s3 is not None
    assert secret not in repr(replace(plan.s3, secret=secret))
    plan = replace(plan, s3=replace(plan.s3, secret=secret))
    with (
        open_session(settings.query, [plan]) as session,
        pytest.raises(ConfigError, match=r"rejected the credentials.*403") as refused,
    ):
        session.ask(select_rows(TRADES, Selection())).table()
    assert refused.value.hint is not None
    assert secret not in str(refused.value)


def test_without_the_extension_a_query_says_how_to_install_it(
    stored: dict[str, Properties], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "duckdb_extension_httpfs"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    failed = k2_at(home, variables(stored["sql"]))("query", "trades", code=3)
    assert re.search(r"httpfs extension for version [\d.]+, which is not installed", failed.stderr)
    assert "hint: pip install duckdb-extension-httpfs==" in failed.stderr
