"""Data files carry page checksums, and every reader of k2's verifies them."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import trades_batch

from k2cli.errors import BadData
from k2cli.records import TRADES
from k2cli.storage.datafiles import read_data_file
from k2cli.storage.lake import Lake


def flip_a_bit(path: Path, at: int) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def page_of(path: Path, column: str) -> int:
    """The offset of the last byte of a column's first row group, which is part of a page."""
    group = pq.ParquetFile(path).metadata.row_group(0)
    chunk = next(
        group.column(n) for n in range(group.num_columns) if group.column(n).path_in_schema == column
    )
    begin = chunk.dictionary_page_offset or chunk.data_page_offset
    return int(begin + chunk.total_compressed_size - 1)


@pytest.mark.parametrize("column", ["price", "symbol", "message_id", "timestamp"])
def test_a_flipped_bit_in_a_page_is_found_by_its_checksum(lake: Lake, column: str) -> None:
    lake.append(TRADES, pa.Table.from_batches([trades_batch(50)]))
    table = lake.table(TRADES)
    file = next(iter(table.scan().plan_files())).file
    path = Path(file.file_path)
    assert sum(rows.num_rows for rows in read_data_file(table, file)) == 50
    flip_a_bit(path, page_of(path, column))
    with pytest.raises(BadData, match=r"is damaged: .*(CRC|checksum)"):
        list(read_data_file(table, file))
