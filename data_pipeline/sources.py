"""Where rows come from: a name becomes files, each of which can be opened, in the split that its name tells.

A new kind of source is a class, a line in `SOURCES`, and a test; how a file is written is the business of `formats.py`.

    rows.jsonl  'part-*.parquet'  folder/       local files
    hf:llm-blender/mix-instruct[@revision]      a dataset repository of the Hugging Face hub, or its local cache
    s3://bucket/rows.jsonl.zst  gs://…  https://…   whatever fsspec opens

A folder's files named train*, dev*|val*, test* (or lying in folders of such names) give the splits; a folder that
`datasets.save_to_disk` wrote names them itself.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from urllib.parse import urlsplit, urlunsplit

from data_pipeline.errors import UserError, first_line
from data_pipeline.folders import folder_files
from data_pipeline.formats import FORMATS, format_of
from data_pipeline.hub_snapshot import hub_snapshot
from data_pipeline.paths import absolute

_HUB = re.compile(r"hf:(?!/)(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
# Resolved to its commit, which names the files in manifest and quarantine.
DEFAULT_REVISION = "main"
# What stands in a file's description where a change of its content shows.
_STAMPS = (
    "etag",
    "lastmodified",
    "last_modified",
    "last-modified",
    "mtime",
    "created",
    "updated",
    "md5hash",
    "digest",
    "content-md5",
)
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}


@dataclass(frozen=True)
class SourceFile:
    """One file of the input.

    name: how manifest and quarantine call it, free of passwords. system, path: the fsspec file system that opens it,
    and its path there. revision: the commit of a hub repository.
    """

    name: str
    system: Any
    path: str
    split: str | None = None
    revision: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether `path` is a path of this machine."""
        return "file" in self.system.protocol

    def open(self) -> BinaryIO:
        """The file, to read. Raises OSError, or what the remote system's client raises."""
        return open(self.path, "rb") if self.is_local else self.system.open(self.path, "rb")  # type: ignore[no-any-return]

    def stamp(self) -> str | None:
        """What tells this content of a remote file from an earlier one; None where its server says nothing of it."""
        info = {key: str(value) for key, value in self.system.info(self.path).items()}
        return json.dumps(info, sort_keys=True) if any(key.lower() in _STAMPS for key in info) else None


class Source(Protocol):
    """One kind of place that rows come from."""

    def takes(self, name: str) -> bool:
        """Whether `name` is of this kind."""
        ...

    def files(self, name: str) -> list[SourceFile]:
        """The files that `name` means, in order; none where there is none. Raises `UserError` if it cannot be read."""
        ...


class Hub:
    """A dataset repository of the Hugging Face hub: `hf:owner/name`, `hf:owner/name@revision`."""

    def takes(self, name: str) -> bool:
        """Whether it begins with hf: (hf:// is fsspec's)."""
        return name.startswith("hf:") and not name.startswith("hf://")

    def files(self, name: str) -> list[SourceFile]:
        """Its files of rows, from the local cache where they are there, else downloaded; named by the commit."""
        found = _HUB.fullmatch(name)
        if not found:
            raise UserError(f"{name} is no hub dataset; write hf:owner/name or hf:owner/name@revision.")
        repository = found["repository"]
        snapshot = hub_snapshot(repository, found["revision"] or DEFAULT_REVISION)
        commit = snapshot.name
        return [
            replace(file, name=f"hf:{repository}@{commit}/{Path(file.path).relative_to(snapshot)}", revision=commit)
            for file in LocalPath().files(str(snapshot))
        ]


class Url:
    """Anything that fsspec opens: s3://, gs://, https://, memory://, …; a file, a glob or a folder."""

    def takes(self, name: str) -> bool:
        """Whether it has a scheme."""
        return "://" in name

    def files(self, name: str) -> list[SourceFile]:
        """The files at a URL."""
        try:
            system, path = _file_system(name)
            if glob.has_magic(path) and not name.startswith("http"):
                return [_remote(name, system, match) for match in sorted(system.glob(path))]
            if system.isfile(path) or name.startswith("http"):
                return [_remote(name, system, path)]
            return [_remote(name, system, found, split) for split, found in folder_files(system, path)]
        except FileNotFoundError:
            return []
        except UserError:
            raise
        except Exception as error:  # every client has exceptions of its own: no access, no such host, no bucket
            shown = without_secrets(name)
            problem = first_line(error).replace(name, shown)
            raise UserError(f"Cannot list {shown} ({problem}); check it and access.") from error


class LocalPath:
    """A file, a glob (** too) or a folder of this machine."""

    def takes(self, name: str) -> bool:
        """Whatever nothing else takes."""
        return True

    def files(self, name: str) -> list[SourceFile]:
        """The files at a path, absolute."""
        from fsspec.implementations.local import LocalFileSystem

        system, path = LocalFileSystem(), absolute(name)
        if path.is_dir():
            return [SourceFile(found, system, found, split) for split, found in folder_files(system, str(path))]
        matches = [str(path)] if path.is_file() else sorted(glob.glob(str(path), recursive=True))
        return [SourceFile(match, system, match) for match in matches if Path(match).is_file()]


SOURCES: tuple[Source, ...] = (Hub(), Url(), LocalPath())
"""The first that takes a name reads it."""


def list_source(source: str | Mapping[str, str]) -> list[SourceFile]:
    """The files that the input names, with their splits; split None where rows are one body, yet to be split.

    source: a name, or {split: name}; of a source that names splits itself, that split alone is taken.
    Raises `UserError` where a name finds nothing, a file is in two splits, or a split's files are of several formats.
    """
    if isinstance(source, str):
        files = _found(source)
    else:
        files = [file for split, name in source.items() for file in _of_split(split, name)]
    _require_one_split_each(files)
    _require_one_format(files)
    return files


def _found(name: str) -> list[SourceFile]:
    """The files of one name, at least one."""
    files = next(source for source in SOURCES if source.takes(name)).files(name)
    if not files:
        known = ", ".join(each.endings[0] for each in FORMATS)
        if Path(name).expanduser().is_dir():
            raise UserError(f"There is no file of rows in the folder {name}; their names end in {known}.")
        raise UserError(
            f"There is no file at {without_secrets(name)}; give a file, a glob in quotes, or a folder with files of "
            f"rows ({known})."
        )
    return files


def _of_split(split: str, name: str) -> list[SourceFile]:
    """The files of one split: all that `name` finds, or of named splits the one of this name."""
    try:
        files = _found(name)
    except UserError as error:
        raise UserError(f"Split {split}: {error}") from error
    named = list(dict.fromkeys(file.split for file in files if file.split))
    if named and split not in named:
        raise UserError(f"{without_secrets(name)} has no split {split}; it has {', '.join(named)}.")
    return [replace(file, split=split) for file in files if file.split in (None, split)]


def _require_one_split_each(files: Sequence[SourceFile]) -> None:
    seen: dict[str, SourceFile] = {}
    for file in files:
        if file.name in seen:
            other = seen[file.name].split
            raise UserError(f"{file.name} is in the splits {other} and {file.split}; give each file to one split.")
        seen[file.name] = file


def _require_one_format(files: Sequence[SourceFile]) -> None:
    """Files of several formats side by side are, as a rule, the same rows twice."""
    seen: dict[str | None, SourceFile] = {}
    for file in files:
        other = seen.setdefault(file.split, file)
        if format_of(other.name) is not format_of(file.name):
            where = f"Split {file.split}" if file.split else "The input"
            raise UserError(
                f"{where} has files of two formats, {other.name} and {file.name}; "
                "if they are not the same rows twice, convert one, else take one away."
            )


def without_secrets(name: str) -> str:
    """A URL without user, password and query (which may be a signature); any other name as it is."""
    if "://" not in name:
        return name
    parts = urlsplit(name)
    return urlunsplit((parts.scheme, parts.netloc.rsplit("@", 1)[-1], parts.path, "", ""))


def shown_input(source: str | Mapping[str, str]) -> str | dict[str, str]:
    """What was given as input, as manifests and reports may show it."""
    if isinstance(source, str):
        return without_secrets(source)
    return {split: without_secrets(name) for split, name in source.items()}


def _remote(name: str, system: Any, path: str, split: str | None = None) -> SourceFile:
    return SourceFile(without_secrets(system.unstrip_protocol(path)), system, path, split)


def _file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path there."""
    import fsspec

    scheme = url.split("://", 1)[0]
    try:
        return fsspec.core.url_to_fs(url)  # type: ignore[no-any-return]
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        mend = f"pip install 'urg[{extra}]'" if extra else f"pip install what it names ({first_line(error)})"
        raise UserError(f"{scheme}:// needs a package that is not installed; {mend}.") from error
    except ValueError as error:
        raise UserError(
            f"{without_secrets(url)}: there is no scheme {scheme}://; give a path, hf:owner/name, s3://, gs:// or "
            "https://."
        ) from error
