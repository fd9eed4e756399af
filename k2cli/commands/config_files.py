"""The files that `k2 config init` writes: a commented k2.toml, and the .env of the containers."""

import inspect
import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from k2cli.config import SettingDoc, documented_sections
from k2cli.redaction import is_secret

_HEAD: Final = """\
# Settings of k2. A line such as `#key = value` shows a default or an example; remove the # to set
# it. Precedence: options, K2_* variables, the profile, the rest of the file.
# Show effective values and their origins: k2 config show --origin
"""
_PROFILE: Final = """
# A profile overrides the sections above: k2 --profile prod ..., or K2_PROFILE=prod.
#[profile.prod.kafka]
#bootstrap.servers = "kafka.example.com:9092"
"""
# Examples for the open sections, with the addresses of docker/compose.yml.
_CLUSTER: Final[Mapping[str, tuple[str, list[SettingDoc]]]] = {
    "catalog": (
        "Any pyiceberg catalog instead of the embedded one, with any property.\n"
        "In names of variables __ means a dot and _ a dash: K2_CATALOG_S3__ACCESS_KEY_ID.",
        [
            SettingDoc(key="type", example="rest", text="rest, sql, glue, hive, ..."),
            SettingDoc(key="uri", example="http://127.0.0.1:8181", text="URL of the catalog."),
            SettingDoc(key="warehouse", example="s3://lake", text="Location of new tables."),
            SettingDoc(key="token", example="...", text="Token, if the catalog requires one."),
            SettingDoc(
                key="rest.sigv4-enabled",
                example="true",
                text="For a catalog that requires signed requests, such as AWS and SeaweedFS.",
            ),
            SettingDoc(key="rest.signing-name", example="s3tables", text=""),
            SettingDoc(key="rest.signing-region", example="us-east-1", text=""),
            SettingDoc(key="client.region", example="us-east-1", text=""),
            SettingDoc(
                key="client.access-key-id",
                example="...",
                text="Prefer variables for secrets; those of the containers are in\n"
                "docker/.env, as S3_ACCESS_KEY and S3_SECRET_KEY.",
            ),
            SettingDoc(key="client.secret-access-key", example="...", text=""),
            SettingDoc(
                key="s3.endpoint",
                example="http://127.0.0.1:8333",
                text="For a store other than Amazon's; it needs path-style access.",
            ),
            SettingDoc(key="s3.path-style-access", example="true", text=""),
            SettingDoc(key="s3.region", example="us-east-1", text=""),
            SettingDoc(key="s3.access-key-id", example="...", text=""),
            SettingDoc(key="s3.secret-access-key", example="...", text=""),
        ],
    ),
    "kafka": (
        "With brokers, k2 stream produces to Kafka. Accepts any librdkafka setting; in\n"
        "names of variables _ means a dot: K2_KAFKA_SASL_MECHANISM.",
        [
            SettingDoc(
                key="bootstrap.servers", example="127.0.0.1:9092", text="One or more brokers."
            ),
            SettingDoc(
                key="sasl.username", example="...", text="For brokers that require authentication."
            ),
            SettingDoc(key="sasl.password", example="...", text=""),
        ],
    ),
    "schema_registry": (
        "Accepts any setting of Confluent's client: ssl.ca.location, ...",
        [
            SettingDoc(
                key="url",
                example="http://127.0.0.1:8081/apis/ccompat/v7",
                text="URL of the registry; Confluent's has no path.",
            ),
            SettingDoc(
                key="basic.auth.user.info",
                example="user:password",
                text="For a registry that requires authentication.",
            ),
        ],
    ),
}
_LEFT_OUT: Final = ("token", "sasl.username")  # set in a cluster's file, as are secrets


def settings_file(*, is_cluster: bool) -> str:
    """Return a k2.toml with every setting, commented out unless a cluster needs it."""
    lines = [_HEAD.rstrip()]
    for name, (text, settings) in {**_CLUSTER, **documented_sections()}.items():
        lines += ["", *_comment(inspect.cleandoc(text)), f"[{name}]"]
        for setting in settings:
            lines += _comment(setting.text)
            is_live = is_cluster and name in _CLUSTER and not _is_left_out(setting.key)
            lead = "" if is_live else "#"
            lines.append(f"{lead}{toml_line(setting.key, setting.example)}")
    return "\n".join(lines) + "\n" + _PROFILE


def _is_left_out(key: str) -> bool:
    return key in _LEFT_OUT or is_secret(key)


def toml_line(key: str, value: object) -> str:
    """Format one setting as in the file."""
    name = key if key.isidentifier() else json.dumps(key)
    return f"{name} = {json.dumps(value, ensure_ascii=False)}"


def _comment(text: str) -> Iterator[str]:
    for line in text.splitlines():
        yield f"# {line}".rstrip()


# The variables of docker/compose.yml without a default.
DOCKER_VARIABLES: Final[Mapping[str, Callable[[], str]]] = {
    "S3_ACCESS_KEY": lambda: secrets.token_hex(10),
    "S3_SECRET_KEY": lambda: secrets.token_urlsafe(30),
    "GRAFANA_ADMIN_PASSWORD": lambda: secrets.token_urlsafe(18),
    "SYMBOLS": lambda: "BTCUSDT,ETHUSDT",
}


def docker_file() -> str:
    """Return the .env of docker/compose.yml, with random secrets."""
    lines = [f"{name}={make()}" for name, make in DOCKER_VARIABLES.items()]
    return "# For docker/compose.yml; contains secrets.\n" + "\n".join(lines) + "\n"
