"""Export tables as files in the layout of their source files, the inverse of a load.

Every column of the layout is filled from where a load stores it: an entry of vendor_data unchanged,
a field of the record, or a time in the layout's format. A missing value (a streamed trade has no
quote quantity) is computed from the row's fields if possible, else left empty.
"""

from collections.abc import Mapping
from typing import Final

from k2cli.errors import UsageError
from k2cli.ingestion.csv.layout import Layout
from k2cli.ingestion.symbols import Market
from k2cli.query.answer import Answer
from k2cli.query.engine import Session
from k2cli.query.questions import Question, filters, selected
from k2cli.query.render import UTC, iso_instant, literal, quoted
from k2cli.query.selection import Selection

# Entries of vendor_data that can be computed from the record's fields.
_DERIVED: Final[Mapping[str, str]] = {
    "quote_quantity": "CAST(price * quantity AS VARCHAR)",
    "trade_time": "CAST(epoch_us(timestamp) AS VARCHAR)",
    "is_buyer_maker": "CASE side WHEN 'SELL' THEN 'true' WHEN 'BUY' THEN 'false' END",
}


def check_zone(layout: Layout, zone: str) -> None:
    """Refuse a zone for times that are written without an offset.

    Raises:
        UsageError: the layout writes epochs, or times of a fixed zone.
    """
    if zone != UTC and layout.time.how not in ("iso", "auto"):
        own = "epochs" if layout.time.how == "epoch" else f"local times of {layout.time.zone}"
        raise UsageError(
            f"the layout writes {own}, which have no offset",
            hint="omit --tz, or use another layout, for example generic-trades",
        )


def export_rows(session: Session, layout: Layout, selection: Selection) -> Answer:
    """Query the rows of a selection, in its order, with a layout's columns as text.

    A layout without columns gets those of its fields, then one for every entry of vendor_data in
    the selected rows. Optional columns without values are omitted, as in the files that a load
    reads.

    Raises:
        UsageError: the layout has an unsupported delimiter or format, or the layout's times cannot
        show the session's zone.
    """
    check_zone(layout, session.zone)
    if not layout.is_plain:
        raise UsageError(
            "k2 exports comma-separated UTF-8, but the layout has another format",
            hint="use another layout, for example generic-trades",
        )
    if layout.columns:
        columns = _columns_of_files(session, layout, selection)
    else:
        columns = _columns_in_use(session, layout, selection)
    projection = ", ".join(f"{made} AS {quoted(name)}" for name, made in columns.items())
    rows, values = selected(layout.record, selection)
    return session.ask(Question(f"SELECT {projection} {rows}", values))


def _columns_of_files(session: Session, layout: Layout, selection: Selection) -> dict[str, str]:
    """Fill a layout's columns, each row as in the files of its market."""
    columns = {name: _expression(layout, name, session.zone) for name in layout.columns}
    if not layout.optional and not layout.market_columns:
        return columns
    condition, values = filters(layout.record, selection)
    counts = [f"count({columns[name]}) AS {quoted(name)}" for name in layout.optional]
    asked = ", ".join(["list(DISTINCT exchange) AS exchanges", *counts])
    source = f"FROM {quoted(layout.record.name)} WHERE {condition}"
    (used,) = session.ask(Question(f"SELECT {asked} {source}", values)).table().to_pylist()
    exchanges = used["exchanges"] or []
    for name in reversed(layout.optional):
        if not exchanges or used[name]:
            break
        del columns[name]
    for market in map(Market, layout.market_columns):
        venue = market.exchange
        if venue in exchanges:
            columns = _of_market(
                columns, layout, market, is_alone=exchanges == [venue], zone=session.zone
            )
    return columns


def _of_market(
    columns: Mapping[str, str], layout: Layout, market: Market, *, is_alone: bool, zone: str
) -> dict[str, str]:
    """Fill columns that differ in a market; rename them if all rows are of it."""
    own = layout.for_market(market)
    names = layout.market_columns[market]
    is_of_it = f"exchange = {literal(market.exchange)}"
    result = {}
    for name, made in columns.items():
        if name not in names:
            result[name] = made
        elif is_alone:
            result[names[name]] = _expression(own, names[name], zone)
        else:
            result[name] = (
                f"CASE WHEN {is_of_it} THEN {_expression(own, names[name], zone)} ELSE {made} END"
            )
    return result


def _columns_in_use(session: Session, layout: Layout, selection: Selection) -> dict[str, str]:
    """Fill the columns of fields with values, and of all entries of vendor_data."""
    kind = layout.record
    condition, values = filters(kind, selection)
    source = f"FROM {quoted(kind.name)} WHERE {condition}"
    names = f"SELECT DISTINCT unnest(map_keys(vendor_data)) AS name {source} ORDER BY name"
    entries = {
        name: _entry(name)
        for name in session.ask(Question(names, values)).table()["name"].to_pylist()
    }
    fields = {field: _field(layout, field, session.zone) for field in layout.fields}
    counts = ", ".join(f"count({made}) AS {quoted(field)}" for field, made in fields.items())
    (used,) = session.ask(Question(f"SELECT {counts} {source}", values)).table().to_pylist()
    in_use = [field for field in fields if used[field]] or list(fields)  # no rows: all fields
    return entries | {layout.candidates(field)[0]: fields[field] for field in in_use}


def _expression(layout: Layout, column: str, zone: str) -> str:
    """Build the SQL that fills one column."""
    field = _field_of(layout, column)
    made = [_entry(name) for name, source in layout.vendor_data.items() if source == column]
    made += [
        _DERIVED[name]
        for name, source in layout.vendor_data.items()
        if source == column and name in _DERIVED
    ]
    if field is not None:
        made.append(_field(layout, field, zone))
    if not made:
        made.append("NULL")  # a column that a load does not store
    return f"coalesce({', '.join(made)})" if len(made) > 1 else made[0]


def _field_of(layout: Layout, column: str) -> str | None:
    fields = (name for name in layout.fields if layout.candidates(name)[:1] == (column,))
    return next(fields, None)


def _entry(name: str) -> str:
    return f"vendor_data[{literal(name)}]"


def _field(layout: Layout, field: str, zone: str) -> str:
    kind, rule = layout.record, layout.time
    local = f"timezone({literal(rule.zone)}, timestamp)"
    epoch = "CAST(epoch_us(timestamp) AS VARCHAR)"
    iso = iso_instant("timestamp", zone)
    special = {
        "date": f"strftime({local}, {literal(rule.date_formats[0])})",
        "time": f"strftime({local}, {literal(rule.time_format)})",
        "timestamp": epoch if rule.how == "epoch" else iso,
        # Only the exchange's id, not one that a load derived from time and row.
        "id": f"CASE WHEN NOT starts_with({kind.id_column},"
        " concat(exchange, '-', epoch_us(timestamp) // 1000, '-'))"
        f" THEN substr({kind.id_column}, length(exchange) + 2) END",
        "side": _side(layout.side_values),
    }
    if layout.signed_quantity:
        special["quantity"] = (
            "concat(CASE side WHEN 'SELL' THEN '-' ELSE '' END, CAST(quantity AS VARCHAR))"
        )
    return special.get(field, f"CAST({quoted(field)} AS VARCHAR)")


def _side(texts: Mapping[str, str]) -> str:
    first: dict[str, str] = {}
    for text, side in texts.items():
        if text != "other":
            first.setdefault(side, text)
    whens = " ".join(f"WHEN {literal(side)} THEN {literal(text)}" for side, text in first.items())
    return f"CASE side {whens} END" if whens else "''"
