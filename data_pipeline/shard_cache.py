"""The cache through which shards are read: one Arrow file a shard, memory-mapped, named by the shard's sha256.

Beside it stands its checksum, which a process compares when it first opens the file: CRC-32, which finds any damage but
one in four thousand million, at the speed of reading (3 GB/s on one core, where SHA-256 makes 0.7).

Every process may build it at once: each writes files of its own and renames them into place, the checksum last. They
write the same bytes, so that it does not matter whose file stands beside whose checksum.
"""

from __future__ import annotations

import logging
import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.errors import UserError
from data_pipeline.shard_writing import file_sha256

if TYPE_CHECKING:
    import pyarrow

_log = logging.getLogger(__name__)
_checked: set[tuple[int, int, int, int]] = set()
"""The `_stamp`s of the files that this process has compared with their checksums."""


def map_shard(folder: Path, entry: dict[str, Any]) -> dict[str, pyarrow.Array]:
    """The shard's columns by name, mapped from the cache, which is built where it is missing or broken."""
    import pyarrow

    name = f"{entry['sha256']}.arrow"
    for cache in (folder / ".cache", _user_cache()):
        try:
            return _open_arrow(cache / name, entry["rows"])
        except (OSError, pyarrow.ArrowInvalid):
            pass
    table = _read_parquet(folder / entry["file"], entry["sha256"])
    problem: Exception | None = None
    for cache in (folder / ".cache", _user_cache()):  # the set may lie on storage that only its owner can write
        try:
            _write_arrow(table, cache / name)
            return _open_arrow(cache / name, entry["rows"])
        except (OSError, pyarrow.ArrowInvalid) as error:
            problem = error
    raise UserError(f"Cannot write a cache in {folder / '.cache'} or {_user_cache()} ({problem}); make room or access.")


def _open_arrow(path: Path, rows: int) -> dict[str, pyarrow.Array]:
    """Map an Arrow file of one record batch. Raises OSError or ArrowInvalid where it is absent or broken."""
    import pyarrow

    expected, stamp = _checksum_path(path).read_text(encoding="ascii", errors="replace"), _stamp(path)
    if stamp not in _checked:
        if _checksum(path) != expected:
            _log.warning("%s is damaged; it is built anew from its shard.", path)
            raise pyarrow.ArrowInvalid(f"{path} is not what was written")
        _checked.add(stamp)
    with pyarrow.memory_map(str(path)) as source, pyarrow.ipc.open_file(source) as reader:
        if reader.num_record_batches != 1:
            raise pyarrow.ArrowInvalid(f"{path} holds {reader.num_record_batches} batches")
        batch = reader.get_batch(0)
    if _stamp(path) != stamp:  # another process has just replaced it: what is mapped may not be what was checked
        return _open_arrow(path, rows)
    if batch.num_rows != rows:
        raise pyarrow.ArrowInvalid(f"{path} holds {batch.num_rows} rows")
    return dict(zip(batch.schema.names, batch.columns, strict=True))


def _checksum(path: Path) -> str:
    """The CRC-32 of a file, in hex. Its mapping ends here, so that no page stays in this process's memory."""
    import pyarrow

    with pyarrow.memory_map(str(path)) as source:
        return f"{zlib.crc32(source.read_buffer()):08x}"


def _stamp(path: Path) -> tuple[int, int, int, int]:
    """What tells a file from any other, and from itself as it was before somebody wrote into it."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _checksum_path(path: Path) -> Path:
    return path.with_suffix(".crc32")


def _write_arrow(table: pyarrow.Table, path: Path) -> None:
    """Write an Arrow file of one record batch, and its checksum after it, each whole or not at all."""
    import pyarrow

    path.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(path) as staged:
        with pyarrow.ipc.new_file(str(staged), table.schema) as writer:
            writer.write_table(table.combine_chunks())
        checksum = _checksum(staged)
    with _replacing(_checksum_path(path)) as staged:
        staged.write_text(checksum, encoding="ascii")


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` to write, which is renamed into its place at the end."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem[:16], suffix=".staged")
    os.close(handle)
    try:
        yield Path(name)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _read_parquet(path: Path, sha256: str) -> pyarrow.Table:
    """The whole shard. Raises `UserError` where it cannot be read, or is not what was prepared."""
    import pyarrow.parquet

    try:
        if file_sha256(path) != sha256:  # who opened the set may not have looked
            raise damaged(path, "its content is not what was prepared")
        return pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise damaged(path, str(error)) from error


def _user_cache() -> Path:
    """Where the cache goes when the set's own folder cannot be written."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "urg" / "shards"


def damaged(path: Path, problem: str) -> UserError:
    """The error for a file of a set that is not as it was prepared."""
    return UserError(
        f"{path} is damaged ({problem}); run the same python -m data_pipeline.prepare again to rebuild it."
    )
