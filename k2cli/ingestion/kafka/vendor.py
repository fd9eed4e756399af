"""The boundary to librdkafka: pass settings, translate its errors."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from confluent_kafka import KafkaError, KafkaException

from k2cli.config import BOOTSTRAP
from k2cli.errors import BadData, ConfigError, Conflict, K2Error, NotFound, Unavailable

T = TypeVar("T")
_LOG: Final = logging.getLogger("k2cli.kafka")
_LOG.addHandler(logging.NullHandler())  # otherwise Python writes it to stderr
PURGED: Final = KafkaError._PURGE_QUEUE
AT_END: Final = KafkaError._PARTITION_EOF
FATAL: Final = KafkaError._FATAL
NO_LEADERS: Final = KafkaError._NOENT  # none of the requested partitions has one
OUT_OF_RANGE: Final = frozenset({KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE})
RETRIED: Final = frozenset(  # librdkafka retries, or rejoins its group
    {
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._MAX_POLL_EXCEEDED,
        KafkaError._RESOLVE,
        KafkaError._TIMED_OUT,
        KafkaError._TRANSPORT,
    }
)
_REFUSED: Final = frozenset(
    {
        KafkaError._AUTHENTICATION,
        KafkaError._INVALID_ARG,
        KafkaError._SSL,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.INVALID_GROUP_ID,
        KafkaError.INVALID_SESSION_TIMEOUT,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.UNSUPPORTED_SASL_MECHANISM,
    }
)
NO_TOPIC: Final = frozenset(
    {
        KafkaError.INCONSISTENT_TOPIC_ID,
        KafkaError.UNKNOWN_TOPIC_ID,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
    }
)
_TAKEN: Final = frozenset(
    {
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError.PRODUCER_FENCED,
        KafkaError.TOPIC_ALREADY_EXISTS,
        KafkaError._FENCED,
    }
)
# The client reports a lost static membership as a fatal error whose text has the broker's.
_FENCED_MEMBER: Final = KafkaError(KafkaError.FENCED_INSTANCE_ID).str()
_UNSETTLED: Final = frozenset(
    {
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.UNKNOWN_LEADER_EPOCH,
    }
)
_REFUSED_MESSAGE: Final = frozenset(  # by the broker or the client, every time
    {
        KafkaError.INVALID_MSG_SIZE,
        KafkaError.INVALID_RECORD,
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.POLICY_VIOLATION,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.TOPIC_EXCEPTION,
    }
)
_SETTLE_S: Final = 0.05
_UNFIT: Final = frozenset(
    {
        KafkaError.INVALID_CONFIG,
        KafkaError.INVALID_PARTITIONS,
        KafkaError.INVALID_RECORD,
        KafkaError.INVALID_REPLICATION_FACTOR,
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.POLICY_VIOLATION,
        KafkaError.TOPIC_EXCEPTION,
    }
)
# Settings of the Python client that are functions or objects, so a config file cannot have them.
_OBJECTS: Final = frozenset({"default.topic.config", "on_commit", "on_delivery"})
_CALLBACK: Final = "_cb"
_TRANSACTION: Final = "transactional.id"


def bootstrap(kafka: Mapping[str, str]) -> str:
    """Return the address of the brokers.

    Raises:
        ConfigError: none is set.
    """
    if not kafka.get(BOOTSTRAP):
        raise ConfigError(
            "Kafka is not configured: kafka.bootstrap.servers is missing",
            hint="export K2_KAFKA_BOOTSTRAP_SERVERS=127.0.0.1:9092",
        )
    return kafka[BOOTSTRAP]


def client_config(
    kafka: Mapping[str, str], fixed: Mapping[str, object] | None = None, /, **own: Any
) -> dict[str, Any]:
    """Merge the user's librdkafka settings into k2's defaults, which use `_` for a dot.

    The `fixed` settings, with librdkafka's names, override the user's; see `overridden`.
    librdkafka's log goes to the logger `k2cli.kafka`, not to stderr.

    Raises:
        ConfigError: no brokers are set, or a setting is one that only programs can have.
    """
    bootstrap(kafka)
    for setting in kafka:
        if setting in _OBJECTS or setting.endswith(_CALLBACK):
            raise _refuse(setting, "its value is a function or an object")
        if setting == _TRANSACTION:
            raise _refuse(setting, "k2 chooses it")
    defaults = {key.replace("_", "."): value for key, value in own.items()}
    return {"client.id": "k2", **defaults, **kafka, **(fixed or {}), "logger": _LOG}


def _refuse(setting: str, why: str) -> ConfigError:
    return ConfigError(
        f"kafka.{setting} cannot be set: {why}",
        hint="remove it from the [kafka] settings: k2 config show",
    )


def overridden(kafka: Mapping[str, str], fixed: Mapping[str, object]) -> list[str]:
    """List the user's settings that k2's fixed ones override."""
    return [
        key
        for key, value in fixed.items()
        if key in kafka and str(kafka[key]).lower() != str(value).lower()
    ]


@contextmanager
def translated(what: str, kafka: Mapping[str, str]) -> Iterator[None]:
    """Translate librdkafka's errors inside the block; `what` describes the operation.

    Raises:
        ConfigError: a setting is wrong, or the brokers reject the credentials.
        NotFound: the topic does not exist.
        BadData: the brokers permanently reject this.
        Conflict: another client has taken over.
        Unavailable: the brokers do not answer.
    """
    try:
        yield
    except KafkaException as exc:
        raise translate(what, exc.args[0], kafka) from exc


def translate(what: str, error: KafkaError, kafka: Mapping[str, str]) -> K2Error:
    """Convert a librdkafka error to a k2 error."""
    message = f"{what}: {error.str()}"
    if (exclusion := _exclusion(what, error)) is not None:
        return exclusion
    if error.code() in _REFUSED:
        return ConfigError(message, hint="check the [kafka] settings: k2 config show")
    if error.code() in NO_TOPIC:
        return NotFound(message)
    if error.code() in _UNFIT:
        return BadData(message)
    if error.code() in _TAKEN:
        return Conflict(message)
    return unreachable(message, kafka)


def _exclusion(what: str, error: KafkaError) -> K2Error | None:
    """Return the error if other members keep this one out of its group."""
    if error.code() == KafkaError.INCONSISTENT_GROUP_PROTOCOL:
        return ConfigError(
            f"{what}: {error.str()}",
            hint="other programs are members of this group: choose another --group",
        )
    if _FENCED_MEMBER in error.str():
        return Conflict(
            f"{what}: another member of the group has the same kafka.group.instance.id",
            hint="set a different one for each process, or none: k2 config show",
        )
    return None


def is_refusal(error: KafkaError) -> bool:
    """Return whether a message was permanently refused because of itself or its topic."""
    return error.code() in _REFUSED_MESSAGE


def until_settled(ask: Callable[[], T], *, timeout_s: float, new: bool = False) -> T:
    """Retry while the brokers are still electing the leader of a partition.

    With `new`, a topic that they do not know yet is retried, too.
    """
    unsettled = _UNSETTLED | NO_TOPIC if new else _UNSETTLED
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return ask()
        except KafkaException as exc:
            if exc.args[0].code() not in unsettled or time.monotonic() > deadline:
                raise
        time.sleep(_SETTLE_S)


def unreachable(what: str, kafka: Mapping[str, str]) -> Unavailable:
    """Build the error for brokers that do not answer."""
    return Unavailable(what, hint=f"is Kafka running at {bootstrap(kafka)}?")
