"""How a file of rows may be written: each format turns a file into plain JSON lines, one a row, in bounded memory.

A new format is a class, a line in `FORMATS`, and a test. The ending of a file's name tells its format.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO, ClassVar, Protocol

if TYPE_CHECKING:
    import pyarrow

PIECE_BYTES = 1 << 20
_BATCH_ROWS = 128


class Format(Protocol):
    """One way to write rows. `pieces` raises OSError or ValueError (of pyarrow) where the file is damaged."""

    name: ClassVar[str]
    endings: ClassVar[tuple[str, ...]]

    @staticmethod
    def pieces(file: BinaryIO) -> Iterator[bytes]:
        """The rows of an open file as JSON lines; the bytes come in pieces that may end within a line."""
        ...


class JsonLines:
    """One JSON object a line: what every other format is turned into."""

    name: ClassVar[str] = "jsonl"
    endings: ClassVar[tuple[str, ...]] = (".jsonl",)

    @staticmethod
    def pieces(file: BinaryIO) -> Iterator[bytes]:
        """The bytes as they are."""
        yield from iter(lambda: file.read(PIECE_BYTES), b"")


class GzipLines:
    """JSON lines, compressed by gzip, of any number of members."""

    name: ClassVar[str] = "jsonl.gz"
    endings: ClassVar[tuple[str, ...]] = (".jsonl.gz", ".json.gz", ".gz")

    @staticmethod
    def pieces(file: BinaryIO) -> Iterator[bytes]:
        """The bytes as they were before compression."""
        return _decompressed(file, "gzip")


class ZstdLines:
    """JSON lines, compressed by zstd, of any number of frames."""

    name: ClassVar[str] = "jsonl.zst"
    endings: ClassVar[tuple[str, ...]] = (".jsonl.zst", ".json.zst", ".zst")

    @staticmethod
    def pieces(file: BinaryIO) -> Iterator[bytes]:
        """The bytes as they were before compression."""
        return _decompressed(file, "zstd")


class Parquet:
    """Apache Parquet, a column for each key of a row."""

    name: ClassVar[str] = "parquet"
    endings: ClassVar[tuple[str, ...]] = (".parquet",)

    @staticmethod
    def pieces(file: BinaryIO) -> Iterator[bytes]:
        """A line for each row; one row group is held at a time."""
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(batch_size=_BATCH_ROWS):
                yield _lines(batch)


class Arrow:
    """Arrow IPC, a file or a stream, such as `datasets` writes."""

    name: ClassVar[str] = "arrow"
    endings: ClassVar[tuple[str, ...]] = (".arrow", ".feather")

    @staticmethod
    def pieces(file: BinaryIO) -> Iterator[bytes]:
        """A line for each row; one record batch is held at a time."""
        import pyarrow

        is_file = file.read(6) == b"ARROW1"
        if not is_file:
            _require_end_mark(file)
        file.seek(0)
        for batch in _record_batches(file) if is_file else pyarrow.ipc.open_stream(file):
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                yield _lines(batch.slice(start, _BATCH_ROWS))


FORMATS: tuple[type[Format], ...] = (JsonLines, GzipLines, ZstdLines, Parquet, Arrow)


def format_of(name: str) -> type[Format]:
    """The format of a file by its name; a name with another ending is taken for plain JSON lines."""
    return next((each for each in FORMATS if name.lower().endswith(each.endings)), JsonLines)


def is_data_file(name: str) -> bool:
    """Whether a file in a folder is one of rows, by its name."""
    return any(name.lower().endswith(each.endings) for each in FORMATS)


def _decompressed(file: BinaryIO, codec: str) -> Iterator[bytes]:
    import pyarrow

    with pyarrow.CompressedInputStream(file, codec) as stream:
        yield from iter(lambda: stream.read(PIECE_BYTES), b"")


def _record_batches(file: BinaryIO) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow

    reader = pyarrow.ipc.open_file(file)
    for index in range(reader.num_record_batches):
        yield reader.get_batch(index)


def _require_end_mark(file: BinaryIO) -> None:
    """A stream that was cut between two batches reads like a whole one, but for its end mark."""
    size = file.seek(0, 2)
    file.seek(max(0, size - 4))
    if file.read() != bytes(4):
        raise OSError("no end-of-stream mark")


def _lines(batch: pyarrow.RecordBatch) -> bytes:
    """A JSON line for each row."""
    try:
        rows = batch.to_pylist(maps_as_pydicts="lossy")
    except ValueError:  # text that is not UTF-8: one such row must not cost the others
        rows = [_row(batch, index) for index in range(batch.num_rows)]
    return b"".join(_line(row) for row in rows)


def _row(batch: pyarrow.RecordBatch, index: int) -> object:
    """One row; a text where it cannot be read, which the check of rows then rejects."""
    try:
        return batch.slice(index, 1).to_pylist(maps_as_pydicts="lossy")[0]
    except ValueError as error:
        return _unreadable(error)


def _line(row: object) -> bytes:
    """A row as a JSON line; what JSON has no type for as text: bytes as UTF-8, dates and such as Python writes them."""
    try:
        text = json.dumps(row, ensure_ascii=False, default=_text)
    except (TypeError, ValueError) as error:  # bytes that are no UTF-8; a map whose keys are no text
        text = json.dumps(_unreadable(error))
    return text.encode("utf-8") + b"\n"


def _text(value: object) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _unreadable(error: Exception) -> str:
    """What stands in the place of a row that cannot be read."""
    return f"unreadable row: {error}"
