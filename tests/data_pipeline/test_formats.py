from __future__ import annotations

import datetime
import gzip
import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from data_pipeline.formats import FORMATS, format_of

ROWS: list[dict[str, Any]] = [
    {"id": f"r/{i}", "candidates": [{"model": "m", "text": "a\nb é\u2028", "scores": {"bleu": i / 3}}], "note": None}
    for i in range(300)
]
TEXT = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in ROWS)


def compressed(codec: str) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as stream:
        stream.write(TEXT)
    return sink.getvalue().to_pybytes()


def ipc(writer: Any) -> bytes:
    table, sink = pa.Table.from_pylist(ROWS), io.BytesIO()
    with writer(sink, table.schema) as out:
        for start in range(0, len(ROWS), 97):
            out.write_table(table.slice(start, 97))
    return sink.getvalue()


def parquet(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink, **options)
    return sink.getvalue()


FILES = {
    "a.jsonl": TEXT,
    "a.JSONL.gz": gzip.compress(TEXT),
    "two-members.gz": gzip.compress(TEXT[:100]) + gzip.compress(TEXT[100:]),
    "a.jsonl.zst": compressed("zstd"),
    "a.parquet": parquet(pa.Table.from_pylist(ROWS), row_group_size=70),
    "file.arrow": ipc(pa.ipc.new_file),
    "stream.arrow": ipc(pa.ipc.new_stream),
}


def lines(name: str, content: bytes) -> list[bytes]:
    return b"".join(format_of(name).pieces(io.BytesIO(content))).splitlines(keepends=True)


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_rows_a_line_each(name: str):
    found = lines(name, FILES[name])
    assert [json.loads(line) for line in found] == ROWS
    assert all(line.endswith(b"\n") for line in found)


def test_every_format_of_the_table_is_tested():
    assert {format_of(name) for name in FILES} == set(FORMATS)
    assert format_of("rows.txt").name == "jsonl"


@pytest.mark.parametrize("name", [name for name in FILES if name != "a.jsonl"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_a_file_that_was_cut_off_is_an_error_not_fewer_rows(name: str, share: float):
    content = FILES[name]
    with pytest.raises((OSError, ValueError)):
        lines(name, content[: int(share * len(content))])


def test_an_arrow_stream_that_ends_between_two_batches_is_noticed():
    whole = FILES["stream.arrow"]
    assert whole.endswith(b"\xff\xff\xff\xff" + bytes(4))
    with pytest.raises(OSError, match="no end-of-stream mark"):
        lines("stream.arrow", whole[:-8])


def test_what_json_has_no_type_for_is_written_as_text_and_maps_as_objects():
    day = datetime.date(2026, 1, 2)
    scores = pa.array([[("bleu", 1.5)]], pa.map_(pa.string(), pa.float64()))
    table = pa.table({"day": [day], "scores": scores, "bad": [float("nan")]})
    (row,) = [json.loads(line) for line in lines("a.parquet", parquet(table))]
    assert (row["day"], row["scores"]) == ("2026-01-02", {"bleu": 1.5})


def test_a_row_that_is_not_utf8_costs_only_itself():
    text = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.array([0, 1, 2, 3], pa.int32()).buffers()[1], pa.py_buffer(b"a\xffb")]
    )
    good, bad, other = (json.loads(line) for line in lines("a.parquet", parquet(pa.table({"id": text}))))
    assert (good, other) == ({"id": "a"}, {"id": "b"})
    assert bad.startswith("unreadable row: ")


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_a_column_of_bytes_is_text_and_what_is_no_text_costs_its_row(kind: pa.DataType):
    texts = pa.array(["é".encode(), b"a\xffb", b"plain"], kind)
    table = pa.table({"instruction": texts, "candidates": pa.StructArray.from_arrays([texts], ["text"])})
    good, bad, other = (json.loads(line) for line in lines("a.parquet", parquet(table)))
    assert good == {"instruction": "é", "candidates": {"text": "é"}}
    assert other == {"instruction": "plain", "candidates": {"text": "plain"}}
    assert bad.startswith("unreadable row: 'utf-8' codec")


def test_a_map_whose_keys_json_cannot_have_costs_its_row():
    table = pa.table({"scores": pa.array([[(b"bleu", 1.0)]], pa.map_(pa.binary(), pa.float64()))})
    (line,) = lines("a.parquet", parquet(table))
    assert json.loads(line).startswith("unreadable row: keys must be str")


@pytest.mark.parametrize("name", ["a.jsonl", "a.gz", "a.parquet", "stream.arrow"])
def test_rows_come_in_pieces_and_never_all_at_once(name: str):
    rows = pa.table({"text": ["x" * 10_000] * 1000})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, rows.schema) as out:
        out.write_table(rows)
    text = b'{"text": "%s"}\n' % (b"x" * 10_000) * 1000
    content = {
        "a.jsonl": text,
        "a.gz": gzip.compress(text),
        "a.parquet": parquet(rows),
        "stream.arrow": sink.getvalue(),
    }
    sizes = [len(piece) for piece in format_of(name).pieces(io.BytesIO(content[name]))]
    assert sum(sizes) == len(text)
    assert max(sizes) < 2 << 20
