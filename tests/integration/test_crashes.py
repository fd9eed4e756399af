"""`k2 consume` while everything around it crashes: a few rounds; `nox -s crashes` has more."""

from pathlib import Path

import pytest

from crashes.rounds import BROKER_CONFIG, FAULTS, Servers, play
from services.fixtures import OwnBroker, OwnRegistry

SEED = 8
ROUNDS = 4  # two faults in each at least


@pytest.mark.timeout(1_800)
def test_every_record_is_in_the_table_once_whatever_crashes(
    own_broker: OwnBroker, own_registry: OwnRegistry, tmp_path: Path
) -> None:
    servers = Servers(broker=own_broker(BROKER_CONFIG), registry=own_registry())
    played = [
        play(servers, tmp_path / str(number), seed=SEED, number=number) for number in range(ROUNDS)
    ]
    assert {fault for each in played for fault in each.faults} == {
        fault.__name__ for fault in FAULTS
    }
