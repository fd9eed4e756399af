"""Normalize numbers with an exponent, a sign, surrounding spaces or a decimal comma."""

from decimal import Decimal
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

_SCIENTIFIC: Final = r"^-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][+-]?[0-9]{1,2}$"


def plain_numbers(texts: pa.StringArray) -> pa.StringArray:
    """Expand numbers such as 5.07e+10 to 50700000000, exactly; leave other texts unchanged."""
    texts = pc.replace_substring_regex(pc.utf8_trim_whitespace(texts), r"^\+([0-9.])", r"\1")
    is_scientific = pc.match_substring_regex(texts, _SCIENTIFIC)
    if not pc.any(is_scientific).as_py():
        return texts
    expanded = [_expand(text) for text in texts.filter(is_scientific).to_pylist()]
    return pc.replace_with_mask(texts, is_scientific, pa.array(expanded, pa.string()))


def _expand(text: str) -> str:
    digits = format(Decimal(text), "f")
    return digits.rstrip("0").rstrip(".") if "." in digits else digits
