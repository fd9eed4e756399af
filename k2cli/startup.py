"""What the processes of the command line do before they import anything else."""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


class _WithoutPandas:
    """A finder that does not find pandas."""

    @staticmethod
    def find_spec(
        name: str,
        path: Sequence[str] | None = None,  # noqa: ARG004
        target: ModuleType | None = None,  # noqa: ARG004
    ) -> ModuleSpec | None:
        """Say that pandas is not installed, and nothing of other modules."""
        if name == "pandas":
            raise ModuleNotFoundError("k2's processes do not use pandas", name=name)
        return None


def leave_out_pandas() -> None:
    """Keep pyarrow from importing pandas, which doubles the time that a command takes to start.

    pyarrow imports it, where it is installed, to look at whatever becomes an array. No command
    uses it; the Python API runs in processes of its users, and leaves them alone.
    """
    sys.meta_path.insert(0, _WithoutPandas)
