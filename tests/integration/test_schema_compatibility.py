"""Verdicts on pairs of schemas: those of k2 beside those of a real registry."""

import json
import uuid
from collections.abc import Iterator

import httpx2
import pytest

from k2cli.avro.compatibility import Schema, breaches
from k2cli.avro.level import Level
from k2cli.avro.types import link
from services.registry import RegistryAddress
from support.avro_cases import CASES, Case


@pytest.fixture(scope="module")
def client(registry: RegistryAddress) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=registry.url) as client:
        yield client


def by_registry(client: httpx2.Client, case: Case, level: Level) -> bool:
    """Ask whether the new schema could follow the old one in a subject of its own."""
    subject = f"case-{uuid.uuid4().hex}"
    config = client.put(f"/config/{subject}", json={"compatibility": level})
    old = client.post(f"/subjects/{subject}/versions", json={"schema": json.dumps(case.old)})
    path = f"/compatibility/subjects/{subject}/versions/latest"
    answer = client.post(path, json={"schema": json.dumps(case.new)})
    for each in (config, old, answer):
        assert each.status_code == 200, each.text
    is_compatible: bool = answer.json()["is_compatible"]
    return is_compatible


def by_k2(case: Case, level: Level) -> bool:
    old = Schema(name="OLD", type=link(case.old))
    return not breaches(level, [old], Schema(name="NEW", type=link(case.new)))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_verdicts_are_as_the_table_has_them(case: Case, client: httpx2.Client) -> None:
    ours = [by_k2(case, level) for level in (Level.BACKWARD, Level.FORWARD, Level.FULL)]
    assert ours == [case.backward, case.forward, case.backward and case.forward]
    theirs = [by_registry(client, case, level) for level in (Level.BACKWARD, Level.FORWARD)]
    assert tuple(theirs) == case.by_registry
    assert by_registry(client, case, Level.FULL) == all(theirs)


def test_the_table_names_why_a_registry_differs() -> None:
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)
    for case in CASES:
        assert bool(case.registry) == bool(case.why), case.name
        assert case.registry != (case.backward, case.forward), case.name
