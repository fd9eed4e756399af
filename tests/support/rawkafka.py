"""What no client in Python sends: names and metadata that are not UTF-8, by librdkafka itself."""

import ctypes
from ctypes import POINTER, Structure, c_char_p, c_int, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path

import confluent_kafka

_TOPIC, _PARTITION, _VALUE, _KEY, _HEADERS = 1, 3, 4, 5, 10  # of rd_kafka_vtype_t
_COPY = 2
_WAIT_MS = 30_000


class _Place(Structure):
    _fields_ = (
        ("topic", c_char_p),
        ("partition", c_int32),
        ("offset", c_int64),
        ("metadata", c_void_p),
        ("metadata_size", c_size_t),
        ("opaque", c_void_p),
        ("err", c_int),
        ("private", c_void_p),
    )


def _library() -> ctypes.CDLL:
    folder = Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs"
    (path,) = folder.glob("librdkafka-*.so*")
    library = ctypes.CDLL(str(path))
    for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_headers_new"):
        getattr(library, name).restype = c_void_p
    library.rd_kafka_topic_partition_list_new.restype = c_void_p
    library.rd_kafka_topic_partition_list_add.restype = POINTER(_Place)
    return library


def _client(library: ctypes.CDLL, kind: int, settings: dict[str, str]) -> c_void_p:
    conf = c_void_p(library.rd_kafka_conf_new())
    error = ctypes.create_string_buffer(512)
    for key, value in settings.items():
        assert library.rd_kafka_conf_set(conf, key.encode(), value.encode(), error, 512) == 0
    client = library.rd_kafka_new(kind, conf, error, 512)
    assert client, error.value
    return c_void_p(client)


def produce(bootstrap: str, topic: str, value: bytes, header: bytes) -> None:
    """Produce a message onto partition 0, with a header of any name."""
    library = _library()
    client = _client(library, 0, {"bootstrap.servers": bootstrap})
    headers = c_void_p(library.rd_kafka_headers_new(c_size_t(1)))
    library.rd_kafka_header_add(headers, header, c_int64(len(header)), b"x", c_int64(1))
    failed = library.rd_kafka_producev(
        client,
        *(c_int(_TOPIC), c_char_p(topic.encode())),
        *(c_int(_PARTITION), c_int32(0)),
        *(c_int(_VALUE), c_char_p(value), c_size_t(len(value))),
        *(c_int(_HEADERS), headers),
        c_int(0),
    )
    assert failed == 0
    assert library.rd_kafka_flush(client, _WAIT_MS) == 0
    library.rd_kafka_destroy(client)


def commit(bootstrap: str, group: str, topic: str, metadata: bytes) -> None:
    """Commit offset 1 of partition 0 for a group, with any metadata."""
    library = _library()
    client = _client(library, 1, {"bootstrap.servers": bootstrap, "group.id": group})
    places = c_void_p(library.rd_kafka_topic_partition_list_new(1))
    place = library.rd_kafka_topic_partition_list_add(places, topic.encode(), 0)
    held = ctypes.create_string_buffer(metadata, len(metadata))
    place.contents.offset = 1
    place.contents.metadata = ctypes.cast(held, c_void_p)
    place.contents.metadata_size = len(metadata)
    assert library.rd_kafka_commit(client, places, 0) == 0
    place.contents.metadata = None
    library.rd_kafka_topic_partition_list_destroy(places)
    library.rd_kafka_destroy(client)
