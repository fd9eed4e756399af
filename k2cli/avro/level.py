"""Compatibility levels: which versions must be able to read which."""

from enum import StrEnum


class Level(StrEnum):
    """What must be readable by whom, as registries name it."""

    NONE = "NONE"
    BACKWARD = "BACKWARD"
    BACKWARD_TRANSITIVE = "BACKWARD_TRANSITIVE"
    FORWARD = "FORWARD"
    FORWARD_TRANSITIVE = "FORWARD_TRANSITIVE"
    FULL = "FULL"
    FULL_TRANSITIVE = "FULL_TRANSITIVE"

    @property
    def is_transitive(self) -> bool:
        """Whether all earlier schemas count, and not the last one alone."""
        return self.endswith("_TRANSITIVE")

    @property
    def directions(self) -> tuple[str, ...]:
        """BACKWARD: the new one reads what the old one wrote; FORWARD: the other way round."""
        name = self.removesuffix("_TRANSITIVE")
        return {"NONE": (), "FULL": ("BACKWARD", "FORWARD")}.get(name, (name,))
