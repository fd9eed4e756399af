"""`k2 schema` against a real registry; what Confluent's alone says is played by a local server."""

import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any

import pytest

from k2cli.errors import NotFound, Unavailable
from k2cli.ingestion.kafka.registry import open_registry
from k2cli.records import QUOTES, TRADES
from services.fixtures import OwnRegistry
from services.registry import RegistryAddress
from support.builders import trades_batch
from support.cluster import Cluster
from support.running import Run
from support.waiting import PATIENCE_S

AWAY = ("--registry-option", "url=http://127.0.0.1:1", "--timeout", "500ms")
Answer = Callable[[str, str], tuple[int, Any]]  # method and path -> status and body

# Both as Confluent's registry 7.6 says it.
MESSAGES = [
    "{errorType:'READER_FIELD_MISSING_DEFAULT_VALUE', description:'The field 'venue' at path "
    "'/fields/15' in the new schema has no default value and is missing in the old schema', "
    "additionalInfo:'venue'}",
    "{oldSchemaVersion: 1}",
    '{oldSchema: \'{"type":"record"}\'}',
    "{validateFields: 'false', compatibility: 'BACKWARD'}",
]
REASON = (
    "The field 'venue' at path '/fields/15' in the new schema has no default value and is missing"
    " in the old schema"
)


@pytest.fixture(autouse=True)
def registry_env(registry: RegistryAddress, k2_env: dict[str, str]) -> None:
    """Let every k2 of a test find the registry."""
    k2_env["K2_SCHEMA_REGISTRY_URL"] = registry.url


@pytest.fixture
def subject(topic_name: str) -> str:
    return f"{topic_name}.trades-value"


@contextmanager
def played(answer: Answer) -> Iterator[str]:
    """Play a registry; yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, body = answer(self.command, self.path.partition("?")[0])
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        do_GET = do_POST = answer

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def changed(path: Path, *fields: dict[str, Any]) -> Path:
    """Write the schema of trades with further fields."""
    schema = {**TRADES.avro, "fields": [*TRADES.avro["fields"], *fields]}
    path.write_text(json.dumps(schema))
    return path


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    """A version of our schema that is compatible."""
    field = {"name": "venue", "type": ["null", "string"], "default": None}
    return changed(tmp_path / "newer.avsc", field)


@pytest.fixture
def unfit(tmp_path: Path) -> Path:
    """One that cannot read what was written with ours."""
    return changed(tmp_path / "unfit.avsc", {"name": "venue", "type": "string"})


def test_a_schema_is_registered_listed_and_shown(run: Run, subject: str, newer: Path) -> None:
    first = run(["schema", "register", subject])
    assert (first.exit_code, first.stderr) == (0, "")
    assert run(["schema", "register", subject]).stdout == first.stdout
    second = run(["schema", "register", subject, str(newer)])
    assert second.exit_code == 0
    assert int(second.stdout) != int(first.stdout)

    listed = json.loads(run(["schema", "list", "--format", "json"]).stdout)
    assert {
        "subject": subject,
        "versions": 2,
        "newest": 2,
        "id": int(second.stdout),
        "type": "AVRO",
        "compatibility": "BACKWARD",
    } in listed
    versions = run(["schema", "versions", subject]).stdout.splitlines()
    ids = [int(first.stdout), int(second.stdout)]
    assert versions == ["version,id,type", f"1,{ids[0]},AVRO", f"2,{ids[1]},AVRO"]

    assert json.loads(run(["schema", "show", subject]).stdout) == json.loads(newer.read_text())
    latest = run(["schema", "show", subject, "--version", "latest"]).stdout
    assert latest == run(["schema", "show", subject]).stdout
    assert json.loads(run(["schema", "show", subject, "--version", "1"]).stdout) == TRADES.avro
    by_id = run(["schema", "show", "--id", str(ids[0])]).stdout
    assert json.loads(by_id) == TRADES.avro


def test_the_subject_tells_the_kind_unless_told(run: Run, topic_name: str) -> None:
    subject = f"{topic_name}.quotes-value"
    assert run(["schema", "register", subject]).exit_code == 0
    assert json.loads(run(["schema", "show", subject]).stdout) == QUOTES.avro
    other = f"{topic_name}-value"
    unclear = run(["schema", "register", other])
    assert (unclear.exit_code, unclear.stdout) == (2, "")
    assert "hint: --kind trades or --kind quotes, or a FILE.avsc" in unclear.stderr
    assert run(["schema", "register", other, "--kind", "trades"]).exit_code == 0
    bare = run(["schema", "register", f"{topic_name}.trades"])
    assert bare.exit_code == 2
    assert f"hint: use {topic_name}.trades-value, " in bare.stderr


def test_a_schema_comes_from_stdin_and_need_not_be_a_record(run: Run, topic_name: str) -> None:
    subject = f"{topic_name}-key"
    assert run(["schema", "register", subject, "-"], stdin='"string"').exit_code == 0
    assert run(["schema", "show", subject]).stdout == '"string"\n'


def test_check_answers_before_anything_is_registered(
    run: Run, subject: str, newer: Path, unfit: Path
) -> None:
    run(["schema", "register", subject])
    against = ["--against", "registry", "--subject", subject]
    yes = run(["schema", "check", str(newer), *against])
    assert (yes.exit_code, yes.stdout) == (0, "")
    assert yes.stderr == f"{newer} fits {subject}@1 at level BACKWARD\n"
    assert run(["schema", "check", "trade_v2", *against]).exit_code == 0
    no = run(["schema", "check", str(unfit), *against])
    assert no.exit_code == 6
    assert no.stdout.splitlines() == [
        f"BACKWARD: a reader with {unfit} cannot read what {subject}@1 wrote: field venue: "
        "record TradeV2 lacks it, and it has no default",
        "the registry would refuse the schema: without giving a reason",
    ]
    assert no.stderr == f"error: {unfit} does not fit {subject}@1 at level BACKWARD\n"
    assert run(["schema", "versions", subject]).stdout.count("AVRO") == 1


def test_check_takes_the_only_subject_of_the_kind(
    run: Run, own_registry: OwnRegistry, newer: Path, k2_env: dict[str, str]
) -> None:
    k2_env["K2_SCHEMA_REGISTRY_URL"] = own_registry().url
    none = run(["schema", "check", str(newer), "--against", "registry"])
    assert none.exit_code == 4
    assert "no subject has a name that ends in .trades-value" in none.stderr
    run(["schema", "register", "a.trades-value"])
    run(["schema", "register", "a.quotes-value"])
    assert run(["schema", "check", str(newer), "--against", "registry"]).exit_code == 0
    run(["schema", "register", "b.trades-value"])
    several = run(["schema", "check", str(newer), "--against", "registry"])
    assert (several.exit_code, several.stdout) == (2, "")
    assert "hint: choose one: --subject a.trades-value" in several.stderr


def test_check_tells_what_the_registry_would_let_pass(
    run: Run, subject: str, tmp_path: Path
) -> None:
    run(["schema", "register", subject])
    text = json.dumps(TRADES.avro).replace('"scale": 8', '"scale": 6')
    (tmp_path / "scale.avsc").write_text(text)
    args = ["schema", "check", str(tmp_path / "scale.avsc"), "--against", "registry"]
    result = run([*args, "--subject", subject, "--format", "json"])
    assert result.exit_code == 6
    document = json.loads(result.stdout)
    assert (document["compatible"], document["registry_compatible"]) == (False, True)
    reasons = document["reasons"]
    assert [reason["field"] for reason in reasons] == ["price", "quantity"]
    assert all(reason["registry_passes"] for reason in reasons)
    assert document["notes"] == ["the registry itself would accept the schema"]
    assert "(the registry would accept this)" in reasons[0]["text"]


def test_check_looks_at_all_versions_where_the_level_is_transitive(
    run: Run, subject: str, newer: Path, tmp_path: Path
) -> None:
    """`venue` has a default in version 2 alone: version 1 does not have it at all."""
    run(["schema", "register", subject])
    run(["schema", "register", subject, str(newer)])
    third = changed(tmp_path / "third.avsc", {"name": "venue", "type": ["null", "string"]})
    args = ["schema", "check", str(third), "--against", "registry", "--subject", subject]
    assert run(args).exit_code == 0
    all_of_them = run([*args, "--compatibility", "backward_transitive"])
    assert all_of_them.exit_code == 6
    assert f"what {subject}@1 wrote: field venue" in all_of_them.stdout
    assert f"what {subject}@2 wrote" not in all_of_them.stdout
    assert "at the subject's own level BACKWARD, would accept the schema" in all_of_them.stderr


def test_schemas_of_a_subject_are_named_like_others(run: Run, subject: str, newer: Path) -> None:
    run(["schema", "register", subject])
    run(["schema", "register", subject, str(newer)])
    diff = run(["schema", "diff", f"{subject}@1", subject])
    assert (diff.exit_code, diff.stdout) == (0, "+ venue  null | string = null\n")
    assert run(["schema", "check", f"{subject}@1", f"{subject}@2"]).exit_code == 0
    assert run(["schema", "diff", f"{subject}@1", "trade_v2"]).stderr == "no difference\n"
    shown = run(["schema", "show", f"{subject}@2", "--as", "arrow"])
    assert shown.stdout.splitlines()[-1] == "venue: string"


def test_what_is_incompatible_is_not_registered(run: Run, subject: str, unfit: Path) -> None:
    run(["schema", "register", subject])
    result = run(["schema", "register", subject, str(unfit)])
    assert (result.exit_code, result.stdout) == (6, "")
    assert f"error: cannot register a schema as {subject}: " in result.stderr


def test_an_unknown_subject_or_version_is_told_with_what_is_near(run: Run, subject: str) -> None:
    run(["schema", "register", subject])
    wrong = subject[:-2]
    check = ["check", "trade_v2", "--against", "registry", "--subject", wrong]
    for args in (["show", wrong], ["versions", wrong], check, ["diff", "trade_v2", wrong]):
        result = run(["schema", *args])
        assert (result.exit_code, result.stdout) == (4, "")
        assert f"hint: did you mean {subject}?" in result.stderr
    version = run(["schema", "show", subject, "--version", "9"])
    assert (version.exit_code, version.stdout) == (4, "")
    assert f"error: {subject} has no version 9" in version.stderr
    assert f"hint: k2 schema versions {subject}" in version.stderr


@pytest.mark.parametrize(
    ("args", "code", "stderr"),
    [
        (["show", "--id", "2147483647"], 4, "cannot read schema 2147483647"),
        (["show", "x9-y7-z5"], 4, "k2 schema list shows all"),
        (["show"], 2, "give a name, or an id with --id"),
        (["show", "x", "--id", "1"], 2, "give a name, or an id with --id"),
        (["show", "--id", "1", "--version", "1"], 2, "mutually exclusive"),
        (["show", "x", "--version", "0"], 2, "'0' is not a number or latest"),
        (["register", "x", "no.avsc"], 4, "no.avsc does not exist"),
        (["register", "x", "/"], 2, "/ is a directory"),
        (["register", "x", "a.avsc", "--kind", "trades"], 2, "mutually exclusive"),
        (["register", "x", "-"], 6, "stdin is not JSON"),
        (["list", *AWAY], 5, "hint: is the schema registry running at http://127.0.0.1:1?"),
        (["register", "x.trades-value", *AWAY], 5, "hint: is the schema registry running at"),
        (["list", "--registry-option", "url="], 3, "hint: export K2_SCHEMA_REGISTRY_URL"),
        (["list", "--registry-option", "url="], 3, "without a registry: k2 schema list --ours"),
        (["show", "trade_v9"], 4, "built-in schemas: trade_v2, quote_v2, trade_v1, quote_v1"),
        (["show", "trade_v2", "--version", "2"], 2, "--version requires the name of a subject"),
        (["list", "--registry-option", "no.such=1"], 3, "wrong [schema_registry] settings"),
        (["list", "--registry-option", "x"], 2, "'x' is not KEY=VALUE"),
    ],
)
def test_failures_say_what_to_do(run: Run, args: list[str], code: int, stderr: str) -> None:
    result = run(["schema", *args])
    assert (result.exit_code, result.stdout) == (code, "")
    assert stderr in result.stderr


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "1",
        "null",
        '"nosuch"',
        '{"type": "array"}',
        '{"type": "enum", "name": "e"}',
        '{"type": "record", "name": "a", "fields": 3}',
        '{"type": "record", "name": "a", "fields": [{"name": "x"}]}',
        '{"type": {"type": "record"}}',
        '{"type": "record", "name": "a"}',
    ],
)
def test_what_is_not_avro_is_told(run: Run, subject: str, text: str) -> None:
    result = run(["schema", "register", subject, "-"], stdin=text)
    assert (result.exit_code, result.stdout) == (6, "")
    assert "error: " in result.stderr


def test_a_file_that_is_not_text_is_told(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.avsc").write_bytes(b"\xff\xfe")
    result = run(["schema", "check", "trade_v2", str(tmp_path / "x.avsc")])
    assert result.exit_code == 6
    assert "it is not UTF-8" in result.stderr


def test_what_is_no_schema_registry_is_a_wrong_setting(run: Run) -> None:
    for body in (b"<html>hello</html>", b""):
        for status in (200, 404):
            with played(lambda *_, status=status, body=body: (status, body)) as url:
                result = run(["schema", "list", "--registry-option", f"url={url}"])
            if status == 404 or body:
                assert result.exit_code == 3, result.stderr
                assert f"the server at {url} is not a schema registry" in result.stderr


def dripping(write: Callable[[bytes], object]) -> None:
    write(b"HTTP/1.1 200 OK\r\n\r\n[")
    while True:
        write(b" ")
        time.sleep(0.1)


def dripping_headers(write: Callable[[bytes], object]) -> None:
    write(b"HTTP/1.1 200 OK\r\n")
    while True:
        write(b"X")
        time.sleep(0.1)


def huge(write: Callable[[bytes], object]) -> None:
    write(b"HTTP/1.1 200 OK\r\n\r\n[")
    while True:
        write(b'"' + b"a" * 1_000_000 + b'",')


def bomb(write: Callable[[bytes], object]) -> None:
    body = gzip.compress(b" " * (64 << 20))
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
    write(head.encode() + body)


@contextmanager
def hostile(send: Callable[[Callable[[bytes], object]], None]) -> Iterator[str]:
    """Play a server that sends what it likes, byte by byte; yields its URL."""

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65_536)
            with suppress(OSError):  # k2 has hung up
                send(self.request.sendall)

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


LONG = f"{PATIENCE_S}s"  # what is refused is refused before
HOSTILE = pytest.mark.parametrize(
    ("send", "reason", "timeout"),
    [
        (dripping, "timed out", "1s"),
        (dripping_headers, "timed out", "1s"),
        (huge, "the answer exceeds 8 MiB", LONG),
        (bomb, "the answer is compressed (gzip)", LONG),
    ],
)


@HOSTILE
def test_an_answer_is_bounded_in_size_and_time(
    run: Run, send: Callable[[Callable[[bytes], object]], None], reason: str, timeout: str
) -> None:
    began = time.monotonic()
    with hostile(send) as url:
        result = run(["schema", "list", "--timeout", timeout, "--registry-option", f"url={url}"])
    assert (result.exit_code, result.stdout) == (5, ""), result.stderr
    assert reason in result.stderr
    assert time.monotonic() - began < PATIENCE_S


def oauth_options(registry_url: str, token_url: str) -> list[str]:
    settings = {
        "url": registry_url,
        "bearer.auth.credentials.source": "OAUTHBEARER",
        "bearer.auth.client.id": "k2",
        "bearer.auth.client.secret": "hush",
        "bearer.auth.scope": "registry",
        "bearer.auth.logical.cluster": "lsrc-1",
        "bearer.auth.identity.pool.id": "pool-1",
        "bearer.auth.issuer.endpoint.url": token_url,
        "max.retries": "0",
    }
    pairs = (f"{key}={value}" for key, value in settings.items())
    return [part for pair in pairs for part in ("--registry-option", pair)]


def test_a_token_is_fetched_and_sent(run: Run) -> None:
    token = {"access_token": "t", "token_type": "Bearer", "expires_in": 3600, "expires_at": 1 << 40}
    asked: list[str] = []

    def answer(method: str, path: str) -> tuple[int, Any]:
        asked.append(f"{method} {path}")
        return (200, token if path == "/token" else [])

    with played(answer) as url:
        result = run(["schema", "list", *oauth_options(url, f"{url}/token")])
    assert result.exit_code == 0, result.stderr
    assert asked[:2] == ["POST /token", "GET /subjects"]


@HOSTILE
def test_a_token_is_bounded_in_size_and_time(
    run: Run, send: Callable[[Callable[[bytes], object]], None], reason: str, timeout: str
) -> None:
    began = time.monotonic()
    with hostile(send) as url:
        options = oauth_options("http://127.0.0.1:1", url)
        result = run(["schema", "list", "--timeout", timeout, *options])
    assert (result.exit_code, result.stdout) == (5, ""), result.stderr
    assert reason in result.stderr
    assert "hint: check bearer.auth.*" in result.stderr
    assert "hush" not in result.stderr
    assert time.monotonic() - began < PATIENCE_S


@pytest.mark.parametrize(
    "body",
    [
        {},
        None,
        {"a": [1, {"x": None}]},
        [1, "a"],
        [["a"]],
        "text",
        b"[" * 100_000,
        b'["\xff"]',
        b'{"compatibilityLevel":[]}',
        {"is_compatible": "yes", "compatibilityLevel": "BACKWARD"},
        {"schema": 5, "id": "x", "version": -1, "subject": [], "compatibilityLevel": "FULL"},
        {"schema": "{}", "id": 1 << 40, "version": 1, "references": 7, "schemaType": 5},
        {"error_code": [], "message": {"a": 1}},
        [{"schema": {}, "subject": None}],
    ],
)
@pytest.mark.parametrize("status", [200, 500])
def test_an_answer_of_another_shape_is_an_outage(body: Any, status: int) -> None:
    subject = "market.crypto.trades-value"
    settings = {"max.retries": "0"}
    with (
        played(lambda *_: (status, body)) as url,
        open_registry({"url": url, **settings}, timeout_s=5) as registry,
    ):
        calls: list[Callable[[], object]] = [
            registry.subjects,
            lambda: registry.versions(subject),
            lambda: registry.version(subject, None),
            lambda: registry.text(7),
            lambda: registry.schema(7),
            lambda: registry.find(subject, TRADES.avro),
            lambda: registry.register(subject, TRADES.avro),
            lambda: registry.misfits(subject, TRADES.avro, is_transitive=False),
        ]
        for call in calls:
            with pytest.raises(Unavailable, match=r"^cannot "):
                call()


def test_a_registry_of_nothing_but_braces_is_an_outage_for_every_command(run: Run) -> None:
    with played(lambda *_: (200, {})) as url:
        for args in (["schema", "list"], ["schema", "show", "market.crypto.trades-value"]):
            result = run([*args, "--registry-option", f"url={url}"])
            assert (result.exit_code, result.stdout) == (5, "")
            assert "unexpected answer from the registry" in result.stderr


def test_a_registry_that_refuses_us_is_a_wrong_setting(run: Run) -> None:
    body = {"error_code": 40101, "message": "Unauthorized"}
    with played(lambda *_: (401, body)) as url:
        result = run(["schema", "list", "--registry-option", f"url={url}"])
    assert (result.exit_code, result.stdout) == (3, "")
    assert "cannot list the subjects: Unauthorized" in result.stderr
    assert "hint: check the [schema_registry] settings" in result.stderr


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [(302, b"", 5), (429, b"", 5), (502, b"<html>\xff\x1b[31m</html>", 5), (403, b"no", 3)],
)
def test_an_error_of_a_proxy_is_reported_with_its_status(
    run: Run, status: int, body: bytes, code: int
) -> None:
    with played(lambda *_: (status, body)) as url:
        options = [f"url={url}", "max.retries=0"]
        result = run(["schema", "list", *(f"--registry-option={option}" for option in options)])
    assert (result.exit_code, result.stdout) == (code, "")
    assert f"error: cannot list the subjects: HTTP {status} without a reason\n" in result.stderr


def test_a_registry_without_subjects_lists_none(run: Run) -> None:
    with played(lambda *_: (200, [])) as url:
        result = run(["schema", "list", "--registry-option", f"url={url}"])
    assert result.exit_code == 0
    assert result.stdout == "subject,versions,newest,id,type,compatibility\n"
    assert result.stderr == "no rows matched\n"


def confluent(method: str, path: str) -> tuple[int, Any]:
    """Answer as Confluent's registry does where a schema does not fit."""
    if path.startswith("/compatibility/"):
        return 200, {"is_compatible": False, "messages": MESSAGES}
    if path.startswith("/config/"):
        return 200, {"compatibilityLevel": "BACKWARD_TRANSITIVE"}
    if method == "GET" and path.endswith("/versions"):
        return 200, [1]
    if method == "GET":
        schema = {"schema": json.dumps(TRADES.avro), "id": 1, "version": 1}
        return 200, {**schema, "subject": path.split("/")[2]}
    message = f"Schema being registered is incompatible, details: [{', '.join(MESSAGES)}]"
    return 409, {"error_code": 409, "message": message}


def test_the_reasons_of_a_registry_are_told_without_the_schemas(
    run: Run, subject: str, newer: Path
) -> None:
    with played(confluent) as url:
        option = ["--registry-option", f"url={url}"]
        against = ["--against", "registry", "--subject", subject]
        check = run(["schema", "check", str(newer), *against, *option])
        register = run(["schema", "register", subject, str(newer), *option])
    assert (check.exit_code, register.exit_code) == (6, 6)
    assert check.stdout == f"the registry would refuse the schema: {REASON}\n"
    assert check.stderr == (
        f"error: {newer} does not fit {subject}@1 at level BACKWARD_TRANSITIVE\n"
    )
    assert register.stderr == f"error: cannot register a schema as {subject}: {REASON}\n"


def test_a_schema_that_is_not_avro_is_not_shown(run: Run) -> None:
    schema = {"schemaType": "PROTOBUF", "schema": 'syntax = "proto3";', "id": 3, "version": 1}
    with played(lambda *_: (200, {**schema, "subject": "p"})) as url:
        result = run(["schema", "show", "p", "--registry-option", f"url={url}"])
    assert (result.exit_code, result.stdout) == (6, "")
    assert "p@1 has type PROTOBUF, not AVRO" in result.stderr


def test_consume_takes_options_of_the_registry(cluster: Cluster, topic_name: str) -> None:
    topic = f"{topic_name}.trades"
    cluster.create(topic, partitions=1)
    cluster.produce(topic, trades_batch(3))
    env = {**cluster.env, "K2_SCHEMA_REGISTRY_URL": "http://127.0.0.1:1"}
    away = Cluster(cluster.bootstrap, cluster.registry_url, cluster.home, env)
    option = ("--registry-option", f"url={cluster.registry_url}")
    assert away.consume("--topic", topic, "--group", topic_name, *option)["rows"] == 3


@pytest.mark.parametrize("schema_id", [1 << 31, (1 << 32) - 1])
def test_ids_that_no_schema_has_are_not_requested(schema_id: int) -> None:
    """Confluent's registry answers them with 404 and no code of its own, like any web server."""
    requests: list[str] = []

    def answer(_: str, path: str) -> tuple[int, Any]:
        requests.append(path)
        return 404, {"error_code": 404, "message": "HTTP 404 Not Found"}

    with played(answer) as url, open_registry({"url": url}, timeout_s=10, patience_s=10) as opened:
        for ask in (opened.schema, opened.text):
            with pytest.raises(NotFound, match=f"no schema has id {schema_id}"):
                ask(schema_id)
    assert requests == []
