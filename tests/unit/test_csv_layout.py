"""Layouts: the built-in ones, files of the user's own, and what is wrong with them."""

from pathlib import Path

import pytest

from k2cli.errors import ConfigError, NotFound, UsageError
from k2cli.ingestion.csv.layout import layout_names, layout_text, load_layout, parse_layout
from k2cli.records import QUOTES, TRADES

BUILT_IN = [
    *("asx-quotes", "asx-trades", "binance-agg-trades", "binance-book-ticker", "binance-trades"),
    *("bitfinex-trades", "bybit-trades", "dukascopy-quotes", "generic-quotes", "generic-trades"),
    *("histdata-quotes", "kaiko-trades", "truefx-quotes"),
]


def test_the_built_in_layouts_load_and_their_text_is_the_layout() -> None:
    assert layout_names() == BUILT_IN
    for name in BUILT_IN:
        layout = load_layout(name)
        assert layout.record is (TRADES if name.endswith("trades") else QUOTES)
        assert parse_layout(layout_text(name), origin="text") == layout


def test_a_layout_of_ones_own_is_a_path(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text(layout_text("asx-trades"))
    assert load_layout(path) == load_layout(str(path)) == load_layout("asx-trades")


@pytest.mark.parametrize("name", ["asx-trade", "", "no/such.toml", "/no/such.toml"])
def test_an_unknown_layout_is_not_found_and_the_hint_lists_them(name: str) -> None:
    with pytest.raises(NotFound) as caught:
        load_layout(name)
    assert "asx-quotes, asx-trades, binance-agg-trades" in str(caught.value.hint)


def test_a_layout_file_that_cannot_be_read_is_a_config_error(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"my\.toml cannot be read"):
        load_layout(path)


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        pytest.param(
            "columns =", "colums =", "unknown key colums in my.toml", "columns", id="unknown-key"
        ),
        pytest.param(
            "zone =", "zne =", "unknown key time.zne in my.toml", "zone", id="unknown-time-key"
        ),
        pytest.param(
            "price =", "prise =", "unknown key fields.prise in my.toml", "price", id="unknown-field"
        ),
        pytest.param(
            "currency =",
            "curency =",
            "unknown key constants.curency in my.toml",
            "currency",
            id="unknown-constant",
        ),
        pytest.param(
            'price = "price"',
            'price = "pric"',
            "fields.price is from 'pric'",
            "price",
            id="field-from-unknown-column",
        ),
        pytest.param(
            'venue = "venue"',
            'venue = "venu"',
            "vendor_data.venue is from 'venu'",
            "venue",
            id="vendor-data-from-unknown-column",
        ),
        pytest.param('price = "price"', "", "my.toml lacks fields.price", None, id="no-price"),
        pytest.param('time = "time"', "", "my.toml lacks fields.time", None, id="no-time"),
        pytest.param(
            'kind = "trades"',
            'kind = "bars"',
            "my.toml: Invalid enum value 'bars'",
            None,
            id="unknown-kind",
        ),
        pytest.param('kind = "trades"', "kind = ", "my.toml is not TOML", None, id="not-toml"),
        pytest.param(
            'kind = "trades"',
            "",
            "my.toml: Object missing required field `kind`",
            None,
            id="no-kind",
        ),
        pytest.param(
            '"price", "volume"',
            '"price", "price"',
            "columns names one twice",
            None,
            id="column-twice",
        ),
        pytest.param(
            "%m/%d/%Y", "%m/%Q", "is not a strptime format", "iso", id="unknown-date-directive"
        ),
        pytest.param(
            "%H:%M:%S.%f", "%H:%M:%S%z", "is not a strptime format", "iso", id="time-with-a-zone"
        ),
        pytest.param(
            "%H:%M:%S.%f", "%H:%H", "is not a strptime format", "iso", id="time-directive-twice"
        ),
        pytest.param(
            '"equities"',
            '"stocks"',
            "constants.asset_class is not one of",
            None,
            id="unknown-asset-class",
        ),
        pytest.param(
            'header = "none"',
            'header = "none"\noptional = ["date"]',
            "the last of columns",
            None,
            id="optional-column-not-last",
        ),
        pytest.param(
            "[constants]",
            '[side]\nb = "buy"\n[constants]',
            "side 'b' cannot be mapped to 'buy'",
            None,
            id="unknown-side",
        ),
    ],
)
def test_a_wrong_layout_names_key_file_and_the_nearest(
    old: str, new: str, message: str, hint: str | None
) -> None:
    text = layout_text("asx-trades")
    assert old in text
    with pytest.raises(ConfigError) as caught:
        parse_layout(text.replace(old, new), origin="my.toml")
    assert message in str(caught.value)
    assert (hint or "") in str(caught.value.hint)


def test_mapped_takes_a_field_from_another_column() -> None:
    layout = load_layout("generic-trades").mapped({"price": "Px"})
    assert layout.candidates("price") == ("Px",)
    assert layout.candidates("quantity")[0] == "quantity"


@pytest.mark.parametrize(
    ("name", "renames", "message", "hint"),
    [
        ("generic-trades", {"prise": "Px"}, "'prise' is not a field of trades", "price"),
        ("generic-quotes", {"side": "Side"}, "'side' is not a field of quotes", ""),
        ("asx-trades", {"price": "Px"}, "the layout has no column 'Px'", "date, time, price"),
    ],
)
def test_mapped_refuses_unknown_names(
    name: str, renames: dict[str, str], message: str, hint: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        load_layout(name).mapped(renames)
    assert hint in str(caught.value.hint)
