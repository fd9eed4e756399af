"""Compatibility levels: which schema versions must be able to read which."""

from enum import StrEnum


class Level(StrEnum):
    """A registry's compatibility level: which versions must read which."""

    NONE = "NONE"
    BACKWARD = "BACKWARD"
    BACKWARD_TRANSITIVE = "BACKWARD_TRANSITIVE"
    FORWARD = "FORWARD"
    FORWARD_TRANSITIVE = "FORWARD_TRANSITIVE"
    FULL = "FULL"
    FULL_TRANSITIVE = "FULL_TRANSITIVE"

    @property
    def is_transitive(self) -> bool:
        """Whether all earlier schemas count, not only the last one."""
        return self.endswith("_TRANSITIVE")

    @property
    def directions(self) -> tuple[str, ...]:
        """BACKWARD: the new schema reads what the old one wrote; FORWARD: the reverse."""
        name = self.removesuffix("_TRANSITIVE")
        return {"NONE": (), "FULL": ("BACKWARD", "FORWARD")}.get(name, (name,))
