"""The rules of rebalance, rewind and fencing over a Kafka in memory."""

import pytest

from support.consume_contract import ConsumeContract
from support.memory_reader import MemoryBroker


class TestConsumeFromMemory(ConsumeContract):
    @pytest.fixture
    def brokers(self) -> MemoryBroker:
        return MemoryBroker()
