"""What is wrong with rejects, in the forms that tests compare."""

from collections.abc import Mapping, Sequence

from k2cli.rejects import Cause, Fault


def reasons_of(rejects: Sequence[tuple[int, Fault]]) -> list[tuple[int, str]]:
    """The place of each reject of a decoder, and the sentence that says what is wrong."""
    return [(place, fault.reason) for place, fault in rejects]


def causes_of(rejects: Sequence[tuple[int, Fault]]) -> list[tuple[Cause, str, str | None]]:
    """The cause of each reject, the field that is to blame, and its value."""
    return [(fault.cause, fault.field, fault.value) for _, fault in rejects]


def by_row(faults: Mapping[int, Fault]) -> dict[int, str]:
    """The sentence for each row."""
    return {row: fault.reason for row, fault in faults.items()}
