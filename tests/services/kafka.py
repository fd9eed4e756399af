"""Apache Kafka: one node that is broker and controller."""

import base64
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from confluent_kafka import Consumer, KafkaException, TopicPartition

from services.java import QUICK_START, Java, find_java
from services.packages import digest, fetch, made_once
from services.processes import ServerFailed, ServerProcess, free_port

START_TIMEOUT_S = 240.0
READY = "Kafka Server started"
JVM = ("-Xmx512m", *QUICK_START)

SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "auto.create.topics.enable": "false",
    "offsets.topic.num.partitions": "1",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.num.partitions": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    "log.cleaner.dedupe.buffer.size": "4194304",
    # A killed broker is let in again when its session has timed out, by default after 9 s.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
}

LOGGING = """\
rootLogger.level = WARN
rootLogger.appenderRef.console.ref = console
appender.console.name = console
appender.console.type = Console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d %p %m (%c)%n
logger.ready.name = kafka.server.KafkaRaftServer
logger.ready.level = INFO
"""


@dataclass(frozen=True)
class KafkaAddress:
    """Where a Kafka is; `bootstrap` is what clients call bootstrap.servers."""

    bootstrap: str


@dataclass(frozen=True)
class KafkaSoftware:
    """What a broker is made of.

    `seed` has the data folder that every broker starts with a copy of, and an archive of loaded
    classes, which takes a third off the start. Neither holds a port.
    """

    java: Java
    jars: Path
    seed: Path


@cache
def kafka_software() -> KafkaSoftware:
    """Find or make what brokers are made of.

    Raises:
        ServiceMissing: Java, Maven or the packages are not to be had.
    """
    java, jars = find_java(17), fetch().kafka
    settings = repr((SETTINGS, JVM, str(jars), str(java.program)))
    name = f"kafka-seed-{digest(java.version, settings)}"
    return KafkaSoftware(java, jars, made_once(name, lambda seed: _make_seed(seed, java, jars)))


class KafkaBroker:
    """A broker that can be stopped, killed and started again on the same data and port.

    `config` is put over SETTINGS.
    """

    def __init__(
        self, folder: Path, *, software: KafkaSoftware, config: Mapping[str, str] | None = None
    ) -> None:
        self._port, self._controller_port = free_port(), free_port()
        self._folder = folder
        self._software = software
        self._config = {**SETTINGS, **(config or {})}
        self._process = ServerProcess(name="kafka", folder=folder)

    @property
    def bootstrap(self) -> str:
        """The address for clients, the same after every start."""
        return f"127.0.0.1:{self._port}"

    @property
    def log(self) -> Path:
        """The file of everything that the broker has said."""
        return self._process.log

    @property
    def pid(self) -> int:
        """The process id, for tests that pause or watch it."""
        return self._process.pid

    def is_running(self) -> bool:
        """Tell whether the process lives."""
        return self._process.is_running()

    def start(self) -> None:
        """Start on the data of the last stop, or with none; return when it serves."""
        self._start(f"-XX:SharedArchiveFile={self._software.seed / 'classes.jsa'}")

    def stop(self) -> None:
        """Shut down cleanly."""
        self._process.stop()

    def kill(self) -> None:
        """End the process as a crash would."""
        self._process.kill()

    def _start(self, *jvm: str) -> None:
        data = self._folder / "data"
        if not data.exists():
            shutil.copytree(self._software.seed / "data", data)
        properties, logging = self._write_settings(data)
        java = _java(self._software.java, self._software.jars, self._folder)
        logged = f"-Dlog4j2.configurationFile={logging}"
        self._process.start(
            [*java, *jvm, logged, "kafka.Kafka", str(properties)],
            is_ready=lambda: READY in self._process.log_text(),
            timeout_s=START_TIMEOUT_S,
        )
        _wait_for_groups(self.bootstrap)

    def _write_settings(self, data: Path) -> tuple[Path, Path]:
        controller = f"127.0.0.1:{self._controller_port}"
        listeners = f"PLAINTEXT://{self.bootstrap},CONTROLLER://{controller}"
        settings = {
            "controller.quorum.voters": f"1@{controller}",
            "listeners": listeners,
            "advertised.listeners": listeners,
            "log.dirs": str(data),
            **self._config,
        }
        properties, logging = self._folder / "server.properties", self._folder / "log4j2.properties"
        properties.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        logging.write_text(LOGGING)
        return properties, logging


def _java(java: Java, jars: Path, folder: Path) -> list[str]:
    classpath = os.pathsep.join(str(jar) for jar in sorted(jars.glob("*.jar")))
    return [str(java.program), *JVM, f"-Djava.io.tmpdir={folder}", "-cp", classpath]


def _make_seed(seed: Path, java: Java, jars: Path) -> None:
    """Run a broker once, so that the others need not do what every first start does.

    Its data are formatted and have the topic of the groups' offsets, which costs 3 s to make.
    """
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        broker = KafkaBroker(folder, software=KafkaSoftware(java, jars, seed))
        data = folder / "data"
        data.mkdir()
        _format(_java(java, jars, folder), broker._write_settings(data)[0])
        try:
            broker._start(f"-XX:ArchiveClassesAtExit={seed / 'classes.jsa'}")
            broker.stop()
        finally:
            broker.kill()
        shutil.move(data, seed)


def _format(java: list[str], properties: Path) -> None:
    cluster = base64.urlsafe_b64encode(b"k2 test servers!").decode()
    command = [*java, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(properties)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    if done.returncode != 0:
        raise ServerFailed(f"Kafka's data folder was not formatted:\n{done.stdout}{done.stderr}")


def _wait_for_groups(bootstrap: str) -> None:
    """Return when consumer groups are served; that makes the topic of their offsets.

    For a moment after a broker's start their coordinator is not there yet, and clients get errors.
    With an AdminClient instead of a consumer, librdkafka can crash when it is closed then.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "any", "log_level": 0})
    try:
        while True:
            try:
                consumer.committed([TopicPartition("any", 0)], timeout=10)
            except KafkaException:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return
    finally:
        consumer.close()
