"""The fixtures for real servers; tests/conftest.py makes them known to all tests.

`kafka`, `registry` and `seaweedfs` are shared by the whole session and must not be stopped; tests
use names of their own in them. K2_TEST_KAFKA (host:port) and K2_TEST_REGISTRY (URL) point to
servers that run already. Tests skip where a server cannot be had, or fail if
K2_TEST_REQUIRE_SERVICES is 1, so that no machine that should run them passes without.
"""

import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

import pytest

from services import ServiceMissing
from services.kafka import KafkaAddress, KafkaBroker, kafka_software
from services.registry import RegistryAddress, SchemaRegistry, registry_software
from services.seaweedfs import SeaweedFs, find_weed
from support.cluster import Cluster

T = TypeVar("T")

SERVERS = {"kafka", "registry", "seaweedfs", "own_broker", "own_registry"}


class OwnBroker(Protocol):
    """Starts a broker for one test alone, with settings put over the usual ones."""

    def __call__(self, config: Mapping[str, str] | None = None) -> KafkaBroker: ...


OwnRegistry = Callable[[], SchemaRegistry]


class _Server(Protocol):
    def start(self) -> None: ...

    def kill(self) -> None: ...


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the time of a test with servers to its own body.

    Whichever test is the first to ask for a server waits until it is fetched and started, which
    takes minutes on a new machine. Fetching and starting have time limits of their own.
    """
    for item in items:
        if SERVERS.isdisjoint(getattr(item, "fixturenames", ())):
            continue
        own = item.get_closest_marker("timeout")
        args, kwargs = (own.args, own.kwargs) if own else ((), {})
        mark = pytest.mark.timeout(*args, **{**kwargs, "func_only": True})
        item.add_marker(mark, append=False)


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaAddress]:
    """A Kafka that all tests share."""
    if bootstrap := os.environ.get("K2_TEST_KAFKA"):
        yield KafkaAddress(bootstrap)
        return
    software = _needed(kafka_software)
    with _running(KafkaBroker(tmp_path_factory.mktemp("kafka"), software=software)) as broker:
        yield KafkaAddress(broker.bootstrap)


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryAddress]:
    """A schema registry that all tests share; its global compatibility level is BACKWARD."""
    if url := os.environ.get("K2_TEST_REGISTRY"):
        yield RegistryAddress(url)
        return
    software = _needed(registry_software)
    with _running(SchemaRegistry(tmp_path_factory.mktemp("registry"), software=software)) as own:
        yield RegistryAddress(own.url)


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFs]:
    """An S3 store with Iceberg REST catalogs that all tests share."""
    weed = _needed(find_weed)
    with _running(SeaweedFs(tmp_path_factory.mktemp("seaweedfs"), weed=weed)) as store:
        yield store


@pytest.fixture
def own_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnBroker]:
    """A way to start brokers that the test may stop, kill and start again."""
    software = _needed(kafka_software)
    with ExitStack() as brokers:

        def start(config: Mapping[str, str] | None = None) -> KafkaBroker:
            folder = tmp_path_factory.mktemp("broker")
            broker = KafkaBroker(folder, software=software, config=config)
            return brokers.enter_context(_running(broker))

        yield start


@pytest.fixture
def own_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnRegistry]:
    """A way to start registries that the test may stop, kill and start again."""
    software = _needed(registry_software)
    with ExitStack() as registries:

        def start() -> SchemaRegistry:
            folder = tmp_path_factory.mktemp("registry")
            return registries.enter_context(_running(SchemaRegistry(folder, software=software)))

        yield start


@pytest.fixture
def cluster(
    kafka: KafkaAddress, registry: RegistryAddress, home: Path, k2_env: dict[str, str]
) -> Cluster:
    """The shared broker and registry, with a home of its own."""
    env = {
        **k2_env,
        "K2_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap,
        "K2_SCHEMA_REGISTRY_URL": registry.url,
    }
    return Cluster(kafka.bootstrap, registry.url, home, env)


@pytest.fixture
def topic_name() -> str:
    """A name that no other topic has, nor a group or subject."""
    return f"test-{uuid.uuid4().hex[:12]}"


S = TypeVar("S", bound=_Server)


@contextmanager
def _running(server: S) -> Iterator[S]:
    """Start a server and kill it at the end: nobody needs its data then."""
    try:
        server.start()
        yield server
    finally:
        server.kill()


def _needed(get: Callable[[], T]) -> T:
    """Get what a server is made of, or skip the test."""
    try:
        return get()
    except ServiceMissing as missing:
        reason = str(missing)
    if os.environ.get("K2_TEST_REQUIRE_SERVICES") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
