"""Apicurio Registry, which speaks the REST API of Confluent's schema registry."""

import json
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

from services.java import QUICK_START, Java, find_java
from services.packages import fetch
from services.processes import ServerProcess, free_port

START_TIMEOUT_S = 240.0


@dataclass(frozen=True)
class RegistryAddress:
    """Where a schema registry is; `url` is what clients call schema.registry.url."""

    url: str


@dataclass(frozen=True)
class RegistrySoftware:
    """What a registry is made of: `home` has quarkus-run.jar."""

    java: Java
    home: Path


def registry_software() -> RegistrySoftware:
    """Find or fetch what registries are made of.

    Raises:
        ServiceMissing: Java, Maven or the packages are not to be had.
    """
    return RegistrySoftware(find_java(21), fetch().registry)


class SchemaRegistry:
    """A registry that keeps its schemas when it is stopped and started again."""

    def __init__(self, folder: Path, *, software: RegistrySoftware) -> None:
        self._port, self._management_port = free_port(), free_port()
        self._folder = folder
        self._software = software
        self._process = ServerProcess(name="registry", folder=folder)

    @property
    def url(self) -> str:
        """The base of the REST API, the same after every start."""
        return f"http://127.0.0.1:{self._port}/apis/ccompat/v7"

    @property
    def log(self) -> Path:
        """The file of everything that the registry has said."""
        return self._process.log

    def is_running(self) -> bool:
        """Tell whether the process lives."""
        return self._process.is_running()

    def start(self) -> None:
        """Start with the schemas of the last stop, or none; return when it serves.

        The global compatibility level is BACKWARD then, as it is in Confluent's registry.
        """
        self._process.start(self._command(), is_ready=self._answers, timeout_s=START_TIMEOUT_S)
        body = json.dumps({"compatibility": "BACKWARD"}).encode()
        headers = {"Content-Type": "application/vnd.schemaregistry.v1+json"}
        request = Request(f"{self.url}/config", data=body, headers=headers, method="PUT")
        with urlopen(request, timeout=60):
            pass

    def stop(self) -> None:
        """Shut down cleanly."""
        self._process.stop()

    def kill(self) -> None:
        """End the process as a crash would."""
        self._process.kill()

    def _answers(self) -> bool:
        try:
            with urlopen(f"{self.url}/subjects", timeout=10):
                return True
        except (URLError, HTTPException, OSError):
            return False

    def _command(self) -> list[str]:
        # Without a delay, so that a killed registry has all that it has acknowledged.
        database = f"jdbc:h2:file:{self._folder / 'schemas'};WRITE_DELAY=0"
        settings = {
            "java.io.tmpdir": self._folder,
            "quarkus.http.host": "127.0.0.1",
            "quarkus.http.port": self._port,
            "quarkus.http.access-log.enabled": "false",
            "quarkus.management.host": "127.0.0.1",
            "quarkus.management.port": self._management_port,
            "quarkus.log.level": "WARN",
            "apicurio.datasource.url": database,
            "apicurio.datasource.jdbc.initial-size": 2,
            "apicurio.datasource.jdbc.min-size": 2,
            "apicurio.storage.snapshot.location": self._folder / "snapshots",
            "apicurio.import.work-dir": self._folder / "import",
        }
        properties = [f"-D{key}={value}" for key, value in settings.items()]
        java, jar = self._software.java.program, self._software.home / "quarkus-run.jar"
        return [str(java), "-Xmx384m", *QUICK_START, *properties, "-jar", str(jar)]
