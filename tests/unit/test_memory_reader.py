"""The reader in memory behaves as Kafka's does, as far as k2 relies on it."""

import pytest

from support.memory_reader import MemoryBroker
from support.reader_contract import ReaderContract


class TestMemoryReader(ReaderContract):
    @pytest.fixture
    def brokers(self) -> MemoryBroker:
        return MemoryBroker()
