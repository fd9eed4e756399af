"""Recordings in tests: read without damage."""

from pathlib import Path

from k2cli.ingestion.recordings import Damage, Recorded, read_recordings


def no_damage(damage: Damage) -> None:
    """Fail; for readers that report damage."""
    raise AssertionError(damage)


def frames_in(path: Path) -> list[Recorded]:
    """Read the frames of a recording, or of all in a folder."""
    return list(read_recordings(path, no_damage))
