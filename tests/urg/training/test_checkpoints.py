"""A checkpoint is whole or it is not loaded."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from urg.training import checkpoints
from urg.training.state import Refused


def _checkpoint(run: Path, step: int) -> Path:
    folder = checkpoints.new_folder(run, step)
    (folder / "state").mkdir(parents=True)
    (folder / "state" / "weights.bin").write_bytes(os.urandom(2000))
    checkpoints.commit(folder, {"step": step}, world=2)
    return folder


def test_a_committed_checkpoint_is_whole_and_gives_its_state_back(tmp_path: Path) -> None:
    folder = _checkpoint(tmp_path, 7)
    assert checkpoints.damage(folder) is None
    assert checkpoints.load_state(folder) == {"step": 7, "world": 2}


def test_two_attempts_at_a_step_do_not_meet(tmp_path: Path) -> None:
    assert checkpoints.new_folder(tmp_path, 3) != checkpoints.new_folder(tmp_path, 3)


@pytest.mark.faults
@pytest.mark.parametrize("fault", ["flip", "truncate", "delete", "no manifest", "half a manifest"])
def test_any_damage_is_found_named_and_passed_over(tmp_path: Path, fault: str) -> None:
    older, newer = _checkpoint(tmp_path, 5), _checkpoint(tmp_path, 10)
    data, manifest = newer / "state" / "weights.bin", newer / "manifest.json"
    if fault == "flip":
        content = bytearray(data.read_bytes())
        content[1000] ^= 1
        data.write_bytes(bytes(content))
    elif fault == "truncate":
        data.write_bytes(data.read_bytes()[:-1])
    elif fault == "delete":
        data.unlink()
    elif fault == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text(manifest.read_text()[:20])
    named = "manifest" if "manifest" in fault else "weights.bin"
    assert named in str(checkpoints.damage(newer))
    found, passed_over = checkpoints.newest_whole(checkpoints.newest_first(tmp_path))
    assert found == older
    assert len(passed_over) == 1
    with pytest.raises(UserError, match="cannot resume"):
        checkpoints.require_whole(newer)


def test_a_manifest_takes_what_workers_know_of_their_own_files_and_reads_the_rest(tmp_path: Path) -> None:
    alone = _checkpoint(tmp_path, 3)
    folder = checkpoints.new_folder(tmp_path, 4)
    (folder / "state").mkdir(parents=True)
    for rank in range(3):
        (folder / "state" / f"rank-{rank}.pt").write_bytes(os.urandom(100 + rank))
    known = checkpoints.entries(folder, [folder / "state" / "rank-2.pt", folder / "state" / "rank-1.pt"])
    assert list(known) == ["state/rank-1.pt", "state/rank-2.pt"]
    (folder / "state" / "rank-2.pt").write_bytes(bytes(102))  # after its worker has read it
    checkpoints.commit(folder, {"step": 4}, 3, known)
    assert "rank-2.pt has been altered" in str(checkpoints.damage(folder))
    assert checkpoints.damage(alone) is None


def test_what_another_node_has_written_may_be_seen_late_and_must_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network file system that remembers for a while what was not there."""
    folder = checkpoints.new_folder(tmp_path / "runs" / "mine", 4)
    (folder / "state").mkdir(parents=True)
    part = folder / "state" / "rank-1.pt"
    known = {"state/rank-1.pt": {"bytes": 4, "sha256": "0" * 64}}
    writing = threading.Timer(0.3, part.write_bytes, [b"late"])
    writing.start()
    checkpoints.commit(folder, {"step": 4}, 2, known)
    assert (folder / "manifest.json").exists()
    (folder / "manifest.json").unlink()
    part.unlink()
    monkeypatch.setattr(checkpoints, "SEEN_WITHIN_S", 0)
    with pytest.raises(Refused, match=rf"rank-1\.pt.* storage {tmp_path / 'runs'} is not shared by all nodes"):
        checkpoints.commit(folder, {"step": 4}, 2, known)
    assert not (folder / "manifest.json").exists()


def test_each_file_is_looked_at_by_one_worker(tmp_path: Path) -> None:
    folder = _checkpoint(tmp_path, 7)
    (folder / "state" / "weights.bin").write_bytes(bytes(2000))
    found = [checkpoints.damage(folder, part, 5) for part in range(5)]
    assert [wrong is not None for wrong in found] == [True, False, False, False, False]


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert checkpoints.newest_whole(checkpoints.newest_first(tmp_path)) == (None, [])


def test_only_interrupted_writes_are_removed(tmp_path: Path) -> None:
    whole, partial = _checkpoint(tmp_path, 5), tmp_path / "checkpoint-00000009-abcdef"
    (partial / "state").mkdir(parents=True)
    (tmp_path / "model").mkdir()
    (tmp_path / ".resized" / "state" / "tmp").mkdir(parents=True)
    checkpoints.remove_unfinished(tmp_path)
    assert whole.is_dir()
    assert (tmp_path / "model").is_dir()
    assert not partial.exists()
    assert not (tmp_path / ".resized").exists()


def test_publish_replaces_the_folder_as_a_whole(tmp_path: Path) -> None:
    for content in ("old", "new"):
        source = tmp_path / content
        source.mkdir()
        (source / content).write_text(content)
        checkpoints.publish(source, tmp_path / "model")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["new"]
    assert not list(tmp_path.glob(".model*"))


def _committed(run: Path, step: int) -> Path:
    folder = checkpoints.new_folder(run, step)
    folder.mkdir()
    checkpoints.commit(folder, {"step": step}, world=1)
    return folder


def test_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    _first, second, third, newest = (_committed(tmp_path, step) for step in (1, 2, 3, 4))
    checkpoints.retain(tmp_path, newest, keep=3)
    assert {second, third, newest} == set(tmp_path.iterdir())
    checkpoints.retain(tmp_path, newest, keep=1)
    assert {newest} == set(tmp_path.iterdir())


def test_all_of_a_checkpoint_is_on_disk_before_the_manifest_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def fsync(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    monkeypatch.setattr(checkpoints.os, "fsync", fsync)
    folder = checkpoints.new_folder(tmp_path, 1)
    (folder / "state").mkdir(parents=True)
    (folder / "state" / "part.pt").write_bytes(b"weights")
    checkpoints.commit(folder, {"step": 1}, world=1)
    manifest = synced.index("manifest.json.tmp")
    assert {"part.pt", "train_state.json"} <= set(synced[:manifest])
    assert {"state", folder.name, tmp_path.name} <= set(synced[manifest:])


def test_what_was_passed_over_as_damaged_does_not_outlive_its_successor(tmp_path: Path) -> None:
    """Steps 5 and 7 were damaged; the run went back to 4 and has come to 5 again."""
    before, damaged, later = (_committed(tmp_path, step) for step in (4, 5, 7))
    again = _committed(tmp_path, 5)
    checkpoints.retain(tmp_path, again, keep=2)
    assert {before, again} == set(tmp_path.iterdir())
    assert not damaged.exists()
    assert not later.exists()


def test_an_unfinished_checkpoint_is_no_matter_of_retention(tmp_path: Path) -> None:
    partial, newest = tmp_path / "checkpoint-00000001-abcdef", _committed(tmp_path, 2)
    partial.mkdir()
    checkpoints.retain(tmp_path, newest, keep=1)
    assert partial.is_dir()
