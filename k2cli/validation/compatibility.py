"""Check whether a schema can follow others: the verdict and its reasons."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from k2cli.avro.compatibility import breaches
from k2cli.avro.level import Level
from k2cli.avro.named import NamedSchema


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why a schema does not fit, for JSON; `text` has all of it in one line."""

    text: str
    direction: str | None = None  # BACKWARD or FORWARD
    reader: str | None = None
    writer: str | None = None
    field: str | None = None
    registry_passes: bool = False  # registries ignore logical types


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a schema fits others, a subject or a table."""

    schema: str
    against: list[str]  # names of schemas, or of a table
    level: str | None  # None: against a table
    reasons: list[Reason]  # empty: it fits
    registry_compatible: bool | None = None  # the registry's own result
    notes: list[str] = field(default_factory=list)
    hint: str | None = None

    def document(self) -> dict[str, object]:
        """Return the verdict for JSON."""
        return {**asdict(self), "compatible": not self.reasons}


def check_schemas(older: Sequence[NamedSchema], newer: NamedSchema, level: Level) -> Verdict:
    """Check a schema against others, sorted oldest first: all, or the last one, as `level` says."""
    compared = older if level.is_transitive else older[-1:]
    reasons = [
        Reason(
            text=str(breach),
            direction=breach.direction,
            reader=breach.reader,
            writer=breach.writer,
            field=breach.misfit.path or None,
            registry_passes=breach.misfit.is_let_pass,
        )
        for breach in breaches(level, [old.linked() for old in compared], newer.linked())
    ]
    return Verdict(
        schema=newer.name, against=[old.name for old in compared], level=level, reasons=reasons
    )
