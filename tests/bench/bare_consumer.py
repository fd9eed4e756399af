"""The least that a consumer can do: `python bare_consumer.py BROKERS TOPIC COUNT` prints seconds.

The time is from before joining the group to the last message; none is looked at.
"""

import sys
import time
import uuid

from confluent_kafka import Consumer


def receive(brokers: str, topic: str, count: int) -> float:
    """Receive so many messages; return the time it took."""
    started = time.perf_counter()
    settings = {"bootstrap.servers": brokers, "group.id": f"bare-{uuid.uuid4()}"}
    # By default a full queue stops fetching for a second.
    settings |= {"fetch.queue.backoff.ms": "20", "auto.offset.reset": "earliest"}
    consumer = Consumer({**settings, "enable.auto.commit": False})
    consumer.subscribe([topic])
    while count > 0:
        count -= len(consumer.consume(10_000, timeout=1))
    took_s = time.perf_counter() - started
    consumer.close()
    return took_s


if __name__ == "__main__":
    print(receive(sys.argv[1], sys.argv[2], int(sys.argv[3])))
