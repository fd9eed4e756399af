"""Texts are plain English: the worst patterns of translated prose stay out."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PATTERNS = {
    "is no": re.compile(r"(?<!\bthere )\b(?:is|are|was|were) no\b(?! longer\b)", re.IGNORECASE),
    "became no": re.compile(r"\bbec[ao]mes? no\b", re.IGNORECASE),
    "what became of": re.compile(r"\bwhat bec[ao]mes? of\b", re.IGNORECASE),
    "told": re.compile(r"\btold\b", re.IGNORECASE),
    "mend": re.compile(r"\bmend(?:s|ed|ing)?\b", re.IGNORECASE),
}
# Sources have the docstrings, comments, names, messages and help texts; the reference of the
# commands in docs/ has the help as users see it.
TEXTS = [
    *sorted((REPOSITORY / "k2cli").rglob("*.py")),
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]


def findings(text: str) -> list[str]:
    """Return the patterns in a text, also across line breaks, with what follows each."""
    flat = re.sub(r"\s*\n\s*(?:#:? )?|\s+", " ", text)
    return [
        f"{name}: {flat[match.start() : match.end() + 40]}"
        for name, pattern in PATTERNS.items()
        for match in pattern.finditer(flat)
    ]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        pytest.param("3 lines are no row", ["is no"], id="are-no"),
        pytest.param("the path is\n    no folder", ["is no"], id="across-lines"),
        pytest.param("# what is\n    # no row", ["is no"], id="across-comments"),
        pytest.param("messages that became no row", ["became no"], id="became-no"),
        pytest.param("what became of the commit", ["what became of"], id="what-became-of"),
        pytest.param("the clock is told", ["told"], id="told"),
        pytest.param("the command that mends it", ["mend"], id="mends"),
        pytest.param("there is no table, and there are\nno rows", [], id="there-is-no"),
        pytest.param("it is no longer assigned, and is not a row", [], id="no-longer"),
        pytest.param("is none, is north, recommended, amend", [], id="other-words"),
    ],
)
def test_a_pattern_is_found(text: str, names: list[str]) -> None:
    assert [each.partition(":")[0] for each in findings(text)] == names


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=str(path.relative_to(REPOSITORY))) for path in TEXTS]
)
def test_texts_have_none_of_the_patterns(path: Path) -> None:
    assert findings(path.read_text(encoding="utf-8")) == []
