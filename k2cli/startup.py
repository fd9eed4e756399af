"""Setup of command-line processes, before they import anything else."""

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
        """Report that pandas is not installed; leave other modules alone."""
        if name == "pandas":
            raise ModuleNotFoundError("k2's processes do not use pandas", name=name)
        return None


def leave_out_pandas() -> None:
    """Keep pyarrow from importing pandas, which would double the startup time of commands.

    If pandas is installed, pyarrow imports it to inspect values that become arrays. No command uses
    it; processes of Python API users are not affected.
    """
    sys.meta_path.insert(0, _WithoutPandas)
