"""What `--symbols` and `stream.symbols` select: named symbols, and rules for those that trade.

    BTCUSDT, BTC/USDT    a named symbol, whether it trades or not
    all                  every symbol that trades
    all:USDT             every symbol that trades against this quote asset
    *USDT, BTC*, */USDT  every symbol that trades and matches; with a slash, base and quote asset
    @FILE, @-            words from a file or stdin, one or more per line; # starts a comment

ASCII letters match in both cases. Nothing here asks an exchange: the caller passes its list.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from k2cli.errors import BadData, NotFound, UsageError
from k2cli.files import open_input, reading
from k2cli.ingestion.symbols import Instrument
from k2cli.nearest import nearest_name
from k2cli.paths import expand_home
from k2cli.symbols import fold_symbol, split_commas

_ALL: Final = "ALL"
_WILDCARDS: Final = "*?["
_LONGEST: Final = 100  # characters of a rule
_MAX_BYTES: Final = 16 << 20  # of a file
_SHOWN: Final = 80


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a selection, and the file and line that it is from, if it is from a file."""

    text: str
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule for symbols that trade, such as `all:USDT` or `BTC*`."""

    text: str  # as written
    pattern: str  # as the shell writes it
    is_quote: bool = False  # matches the quote asset, not the symbol

    def matches(self, instrument: Instrument) -> bool:
        """Return whether a symbol is selected."""
        if self.is_quote:
            name = instrument.quote
        elif "/" in self.pattern:
            name = f"{instrument.base}/{instrument.quote}"
        else:
            name = instrument.symbol
        return fnmatchcase(name, self.pattern)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Named symbols, and rules that select others from those that trade."""

    named: Sequence[Instrument]
    rules: Sequence[Rule] = ()

    def resolve(self, trading: Sequence[Instrument]) -> list[Instrument]:
        """Return the named symbols and those that a rule selects, each once."""
        found = {instrument.symbol: instrument for instrument in self.named}
        for rule in self.rules:
            for instrument in filter(rule.matches, trading):
                found.setdefault(instrument.symbol, instrument)
        return list(found.values())

    def check(self, trading: Sequence[Instrument]) -> None:
        """Check that every rule selects something.

        Raises:
            NotFound: one selects nothing; the hint is the nearest rule that does.
        """
        for rule in self.rules:
            if not any(map(rule.matches, trading)):
                raise NotFound(
                    f"{rule.text!r} matches none of the {len(trading):,} symbols that trade",
                    hint=_suggestion(rule, trading),
                )


def _suggestion(rule: Rule, trading: Sequence[Instrument]) -> str | None:
    """Suggest the rule with the nearest asset or symbol in it."""
    literal = rule.pattern.strip(_WILDCARDS + "/")
    names = {i.quote for i in trading}
    if not rule.is_quote:
        names |= {i.base for i in trading} | {i.symbol for i in trading}
    nearest = nearest_name(literal, sorted(names))
    if nearest:
        lead = "all:" if rule.is_quote else ""
        return f"did you mean {lead}{rule.pattern.replace(literal, nearest)}?"
    return f"for example {trading[0].symbol}, all:{trading[0].quote}" if trading else None


def parse_selection(words: Iterable[Word], parse: Callable[[str], Instrument]) -> Selection:
    """Parse words; `parse` parses a named symbol.

    Raises:
        UsageError: a word is not a symbol, or a rule is malformed.
        BadData: likewise, for a word of a file.
    """
    named: dict[str, Instrument] = {}
    rules: dict[Rule, None] = {}
    for word in words:
        try:
            rule = _parse_rule(word.text)
            if rule is None:
                instrument = parse(word.text)
                named.setdefault(instrument.symbol, instrument)
            else:
                rules[rule] = None
        except UsageError as exc:
            if not word.origin:
                raise
            raise BadData(f"{word.origin}: {exc}", hint=exc.hint) from exc
    return Selection(named=list(named.values()), rules=list(rules))


def _parse_rule(text: str) -> Rule | None:
    """Parse a rule; None if it is a symbol."""
    folded = fold_symbol(text) if len(text) <= _LONGEST else text
    head, colon, quote = folded.partition(":")
    is_pattern = any(char in folded for char in _WILDCARDS)
    if not (is_pattern or colon or folded == _ALL):
        return None
    if len(text) > _LONGEST or (colon and (head != _ALL or not quote)):
        raise UsageError(
            f"{text[:_SHOWN]!r} selects no symbols", hint="write it like all:USDT or BTC*"
        )
    if colon:
        return Rule(text, quote, is_quote=True)
    return Rule(text, folded if is_pattern else "*")


def read_words(values: Iterable[str]) -> list[Word]:
    """Split values at commas, and read the files among them.

    Raises:
        NotFound, UsageError, ConfigError: a file does not exist, or cannot be read.
        BadData: a file is empty, not UTF-8, too large, or names another file.
    """
    words: list[Word] = []
    for text in split_commas(values):
        words += _read_file(text[1:]) if text.startswith("@") else [Word(text)]
    return words


def _read_file(name: str) -> list[Word]:
    if not name:
        raise UsageError("@ names no file", hint="write @FILE, or @- for stdin")
    path = name if name == "-" else expand_home(name)
    with reading(path), open_input(path) as source:
        content = source.read(_MAX_BYTES + 1)
    shown = "stdin" if name == "-" else str(path)
    if len(content) > _MAX_BYTES:
        raise BadData(f"{shown} is larger than {_MAX_BYTES >> 20} MB")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise BadData(f"{shown} is not UTF-8: {exc.reason} at byte {exc.start}") from exc
    words = [
        Word(word, f"{shown}, line {number}")
        for number, line in enumerate(text.splitlines(), 1)
        for word in split_commas([line.partition("#")[0]])
    ]
    for word in words:
        if word.text.startswith("@"):
            raise BadData(f"{word.origin}: a file of symbols cannot name another file")
    if not words:
        raise BadData(f"{shown} lists no symbols", hint="write one symbol per line")
    return words
