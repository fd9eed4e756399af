"""Parts of vendors that k2 relies on and that no vendor promises; each failure says what breaks.

Each is used in one place: `registry.py` and `bounded.py` of `ingestion/kafka`,
`storage/tables.py`.
"""

import httpx2
import pyarrow as pa
import pytest
from confluent_kafka import KafkaError
from confluent_kafka.schema_registry import SchemaRegistryClient
from pyiceberg.io import pyarrow as iceberg_arrow

from k2cli.errors import ConfigError, Conflict, Unavailable
from k2cli.ingestion.kafka import vendor
from k2cli.ingestion.kafka.producer import open_writer
from k2cli.records import TRADES
from k2cli.storage.tables import iceberg_schema


def test_the_registry_client_has_its_http_client() -> None:
    client = SchemaRegistryClient({"url": "http://127.0.0.1:1"})
    assert hasattr(client, "_rest_client"), "answers of registries are no longer bounded"
    assert isinstance(client._rest_client.session, httpx2.Client), (
        "the registry's client no longer speaks through httpx2: its errors are not translated"
    )


def test_http_transports_have_a_pool_whose_network_can_be_replaced() -> None:
    with httpx2.Client(proxy="http://127.0.0.1:1") as client:
        transports = [client._transport, *client._mounts.values()]
        for transport in filter(None, transports):
            pool = getattr(transport, "_pool", None)
            assert hasattr(pool, "_network_backend"), (
                "the time of a registry's answer is no longer bounded as a whole"
            )


def test_arrow_schemas_without_ids_become_iceberg_schemas() -> None:
    assert hasattr(iceberg_arrow, "_pyarrow_to_schema_without_ids"), (
        "k2 schema check --table cannot convert columns that are in no file yet"
    )
    schema = iceberg_schema(TRADES.arrow)
    assert [field.name for field in schema.fields] == TRADES.arrow.names
    assert len({field.field_id for field in schema.fields}) == len(TRADES.arrow)
    nested = iceberg_schema(pa.schema([pa.field("m", pa.map_(pa.string(), pa.int64()))]))
    assert nested.highest_field_id == 3


def test_errors_of_librdkafka_have_their_names() -> None:
    names = [value for name, value in vars(vendor).items() if name.isupper()]
    assert names, "the boundary to librdkafka has no codes"
    assert KafkaError._PARTITION_EOF == vendor.AT_END, (
        "the end of a partition is not recognized: k2 consume --until-end does not end"
    )


@pytest.mark.parametrize(
    "setting",
    [
        "error_cb",
        "stats_cb",
        "on_commit",
        "on_delivery",
        "default.topic.config",
        "transactional.id",
    ],
)
def test_settings_that_only_programs_can_have_are_refused(setting: str) -> None:
    """The client would end with a TypeError, or wait forever for a transaction to begin."""
    kafka = {"bootstrap.servers": "127.0.0.1:1", setting: "x"}
    with pytest.raises(ConfigError, match=f"kafka.{setting} cannot be set") as caught:
        vendor.client_config(kafka)
    assert caught.value.hint is not None


@pytest.mark.parametrize("text", ["true", "false"])
def test_a_setting_that_the_client_does_not_take_as_text_is_replaced(text: str) -> None:
    kafka = {"bootstrap.servers": "127.0.0.1:1", "delivery.report.only.error": text}
    with open_writer(kafka, observe=lambda *_, **__: None) as writer:
        writer.flush()


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        (KafkaError.INVALID_SESSION_TIMEOUT, "settings"),
        (KafkaError.INCONSISTENT_GROUP_PROTOCOL, "choose another --group"),
    ],
)
def test_settings_that_the_brokers_refuse_are_not_an_outage(code: int, hint: str) -> None:
    kafka = {"bootstrap.servers": "127.0.0.1:1"}
    error = vendor.translate("cannot read", KafkaError(code), kafka)
    assert isinstance(error, ConfigError)
    assert hint in str(error.hint)


@pytest.mark.parametrize(
    "error",
    [
        KafkaError(KafkaError.FENCED_INSTANCE_ID),
        # As read from a consumer of confluent-kafka 2.16 that a second one has replaced.
        KafkaError(
            KafkaError._FATAL,
            "Fatal error: Broker: Static consumer fenced by other consumer with same "
            "group.instance.id: Fatal consumer error: Broker: Static consumer fenced by other "
            "consumer with same group.instance.id",
        ),
    ],
    ids=["broker", "client"],
)
def test_a_second_member_with_the_same_static_id_is_a_conflict(error: KafkaError) -> None:
    """A client that words it differently makes it an outage: exit code 5 and a wrong hint."""
    found = vendor.translate("cannot read", error, {"bootstrap.servers": "127.0.0.1:1"})
    assert isinstance(found, Conflict)
    assert "kafka.group.instance.id" in str(found)
    assert "different" in str(found.hint)


def test_other_fatal_errors_of_the_client_are_no_conflict() -> None:
    error = KafkaError(KafkaError._FATAL, "Fatal error: Broker: Unknown member")
    found = vendor.translate("cannot read", error, {"bootstrap.servers": "127.0.0.1:1"})
    assert isinstance(found, Unavailable)
