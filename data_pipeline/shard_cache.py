"""The cache through which shards are read: one Arrow file a shard, memory-mapped, named by the shard's sha256.

Every process may build it at once: each writes a file of its own and renames it into place.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.errors import UserError

if TYPE_CHECKING:
    import pyarrow


def map_shard(folder: Path, entry: dict[str, Any]) -> dict[str, pyarrow.Array]:
    """The shard's columns by name, mapped from the cache, which is built where it is missing or broken."""
    import pyarrow

    name = f"{entry['sha256']}.arrow"
    for cache in (folder / ".cache", _user_cache()):
        try:
            return _open_arrow(cache / name, entry["rows"])
        except (OSError, pyarrow.ArrowInvalid):
            pass
    table = _read_parquet(folder / entry["file"])
    problem: OSError | None = None
    for cache in (folder / ".cache", _user_cache()):  # the set may lie on storage that only its owner can write
        try:
            _write_arrow(table, cache / name)
            return _open_arrow(cache / name, entry["rows"])
        except OSError as error:
            problem = error
    raise UserError(f"Cannot write a cache in {folder / '.cache'} or {_user_cache()} ({problem}); make room or access.")


def _open_arrow(path: Path, rows: int) -> dict[str, pyarrow.Array]:
    """Map an Arrow file of one record batch. Raises OSError or ArrowInvalid where it is absent or broken."""
    import pyarrow

    with pyarrow.memory_map(str(path)) as source, pyarrow.ipc.open_file(source) as reader:
        if reader.num_record_batches != 1:
            raise pyarrow.ArrowInvalid(f"{path} holds {reader.num_record_batches} batches")
        batch = reader.get_batch(0)
    if batch.num_rows != rows:
        raise pyarrow.ArrowInvalid(f"{path} holds {batch.num_rows} rows")
    return dict(zip(batch.schema.names, batch.columns, strict=True))


def _write_arrow(table: pyarrow.Table, path: Path) -> None:
    """Write an Arrow file of one record batch, whole or not at all."""
    import pyarrow

    path.parent.mkdir(parents=True, exist_ok=True)
    handle, staged = tempfile.mkstemp(dir=path.parent, prefix=path.stem[:16], suffix=".staged")
    os.close(handle)
    try:
        with pyarrow.ipc.new_file(staged, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        os.replace(staged, path)
    except BaseException:
        Path(staged).unlink(missing_ok=True)
        raise


def _read_parquet(path: Path) -> pyarrow.Table:
    """The whole shard. Raises `UserError` where it cannot be read."""
    import pyarrow.parquet

    try:
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
