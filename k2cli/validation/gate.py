"""The compatibility gate: check a schema against what is in use, a subject or a table."""

from dataclasses import replace
from typing import TYPE_CHECKING

from k2cli.avro.level import Level
from k2cli.avro.named import NamedSchema
from k2cli.codec.kinds import KindDecoder
from k2cli.codec.resolve import Incompatible
from k2cli.codec.upgrade import UPGRADES, V1_DEFAULTS
from k2cli.errors import BadData, NotFound, UsageError
from k2cli.records import KINDS, RecordKind, unknown_kind
from k2cli.validation.compatibility import Reason, Verdict, check_schemas

if TYPE_CHECKING:  # a table needs no registry, and a registry no table
    from k2cli.ingestion.kafka.registry import Registry
    from k2cli.storage.lake import Lake


def check_subject(
    registry: "Registry", newer: NamedSchema, *, subject: str | None, level: Level | None
) -> Verdict:
    """Check a schema against the versions of a subject, and ask the registry itself.

    Without `subject`, against the only subject for such records; without `level`, at the subject's
    own. At that level the registry's refusal is a reason, at another one only a note.

    Raises:
        NotFound: the subject does not exist, or there is none for such records.
        UsageError: there are several, or the kind of the records cannot be inferred.
        BadData: the subject has an unknown level, or a version that is not Avro.
    """
    subject = subject or subject_for(registry, newer)
    versions = [registry.version(subject, None)]
    own_level = _level(registry.level(subject), subject)
    level = level or own_level
    if level.is_transitive:
        versions = registry.versions(subject)
    verdict = check_schemas([version.parse() for version in versions], newer, level)
    misfits = registry.misfits(subject, newer.avro, is_transitive=own_level.is_transitive)
    says = "accept the schema" if misfits is None else f"refuse the schema: {_why(misfits)}"
    reasons, notes = verdict.reasons, []
    if level is not own_level:
        notes = [f"the registry, at the subject's own level {own_level}, would {says}"]
    elif misfits is not None:
        reasons = [*reasons, Reason(text=f"the registry would {says}")]
    elif reasons:
        notes = [f"the registry itself would {says}"]
    return replace(verdict, reasons=reasons, registry_compatible=misfits is None, notes=notes)


def check_table(lake: "Lake", newer: NamedSchema, kind: RecordKind | None) -> Verdict:
    """Check whether a table can store all fields of records with a schema.

    Without `kind`, the table of the kind that the record's name implies. Records of earlier
    versions are upgraded first.

    Raises:
        NotFound: the table does not exist.
        UsageError: the kind of the records cannot be inferred.
    """
    kind = kind or kind_of_schema(newer)
    reasons: list[Reason] = []
    hint = None
    try:
        table = lake.open(kind)
        KindDecoder(newer.avro, table.evolved_kind(), V1_DEFAULTS)
        if _short_name(newer) == kind.avro["name"]:  # earlier versions are upgraded to it
            changes = table.evolve(newer.avro, is_dry_run=True)
            reasons = [Reason(text=f"the table lacks: {change}") for change in changes]
            hint = f"k2 table evolve {kind.name} --schema {newer.name}" if changes else None
    except (Incompatible, BadData) as exc:
        reasons = [Reason(text=str(exc))]
    return Verdict(schema=newer.name, against=[kind.table], level=None, reasons=reasons, hint=hint)


def subject_for(registry: "Registry", schema: NamedSchema) -> str:
    """Find the only subject for records of a schema.

    Raises:
        NotFound: there is none.
        UsageError: there are several, or the kind of the records cannot be inferred.
    """
    ending = f".{kind_of_schema(schema).name}-value"
    subjects = [name for name in registry.subjects() if name.endswith(ending)]
    if len(subjects) == 1:
        return subjects[0]
    if not subjects:
        raise NotFound(
            f"no subject has a name that ends in {ending}",
            hint="list the subjects with k2 schema list; choose one with --subject",
        )
    raise UsageError(
        f"{len(subjects)} subjects have names that end in {ending}",
        hint=f"choose one: --subject {subjects[0]}",
    )


def kind_of_schema(schema: NamedSchema) -> RecordKind:
    """Infer the record kind of a schema of any version from the record's name.

    Raises:
        UsageError: k2 has no schema of this name.
    """
    name = _short_name(schema)
    named = {kind.avro["name"]: kind for kind in KINDS.values()}
    named |= {upgrade.avro["name"]: upgrade.kind for upgrade in UPGRADES.values()}
    if name not in named:
        hint = "choose it with --subject or --table"
        raise unknown_kind(f"of {schema.name} from its name {name}", hint=hint)
    return named[name]


def _short_name(schema: NamedSchema) -> str:
    name = schema.avro.get("name", "") if isinstance(schema.avro, dict) else ""
    return str(name).rpartition(".")[2]


def _level(name: str, subject: str) -> Level:
    try:
        return Level(name)
    except ValueError as exc:
        raise BadData(
            f"{subject} has an unknown compatibility level: {name}",
            hint=f"choose one with --compatibility: {', '.join(Level)}",
        ) from exc


def _why(misfits: list[str]) -> str:
    return "; ".join(misfits) or "without giving a reason"
