"""Where the repository is, and the recorded data beside it."""

from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).parents[1]
REPOSITORY: Final = TESTS.parent
RECORDINGS: Final = REPOSITORY.parent / "shared" / "data"
