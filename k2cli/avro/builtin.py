"""The schemas that come with k2, by name."""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from k2cli.kinds import KindName
from k2cli.records import schema_text

# schemas/*.avsc, the newest ones first
BUILTIN_SCHEMAS: Final = (
    *(kind.traits.schema for kind in KindName),
    *(stem for kind in KindName for stem in kind.traits.earlier),
)


@cache
def builtin_schema(stem: str) -> Mapping[str, Any]:
    """Return a built-in schema as in its file."""
    schema: Mapping[str, Any] = json.loads(schema_text(stem))
    return schema


def builtin_name(record: str | None) -> str | None:
    """Return the built-in schema for records of this name without namespace, or None."""
    return next((stem for stem in BUILTIN_SCHEMAS if builtin_schema(stem)["name"] == record), None)
