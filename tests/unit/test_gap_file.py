"""The file that keeps the open gaps of streams into Kafka."""

from pathlib import Path

import pytest

from k2cli.errors import BadData, Unavailable
from k2cli.pipelines.backfill.gapfile import GapFile
from k2cli.storage.opengaps import MAX_GAPS, OpenGap
from k2cli.storage.position import Series

BTC, ETH = Series("BINANCE", "BTCUSDT"), Series("BINANCE", "ETHUSDT")
GAP = OpenGap(first=5, last=9, reason="not fetched yet", found_s=1_790_000_000)
FAR = OpenGap(first=5_000, last=5_001, reason="not fetched yet", found_s=1_790_000_000)


def file_of(home: Path, target: str = "b:9092 market.crypto.trades") -> GapFile:
    return GapFile(home, target=target)


def test_gaps_are_read_back_as_they_were(tmp_path: Path) -> None:
    file = file_of(tmp_path)
    assert file.load() == {}
    file.save({BTC: [GAP, FAR]})
    assert file_of(tmp_path).load() == {BTC: [GAP, FAR]}
    file.save({BTC: []})
    assert file_of(tmp_path).load() == {}


def test_streams_of_other_symbols_keep_theirs(tmp_path: Path) -> None:
    btc, eth = file_of(tmp_path), file_of(tmp_path)
    btc.save({BTC: [GAP]})
    eth.save({ETH: [FAR]})
    assert btc.load() == {BTC: [GAP], ETH: [FAR]}
    btc.save({BTC: []})
    assert eth.load() == {ETH: [FAR]}


def test_clusters_and_topics_have_files_of_their_own(tmp_path: Path) -> None:
    file_of(tmp_path).save({BTC: [GAP]})
    assert file_of(tmp_path, target="c:9092 market.crypto.trades").load() == {}


def test_the_file_stays_small(tmp_path: Path) -> None:
    file = file_of(tmp_path)
    gaps = [OpenGap(first=n, last=n, reason="x", found_s=n) for n in range(1, 10_001, 2)]
    file.save({BTC: gaps})
    (*_, last) = read = file.load()[BTC]
    assert len(read) <= MAX_GAPS
    assert (read[0].first, last.last) == (1, 9_999)


def test_a_file_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    file = file_of(tmp_path)
    file.save({BTC: [GAP]})
    file.path.write_bytes(b"\xff")
    with pytest.raises(BadData, match="kafka-"):
        file.load()
    file.path.unlink()
    file.path.mkdir()
    with pytest.raises(Unavailable, match="cannot read"):
        file.load()
