"""What systems need is told for each of them, and looked at before anything slow."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from urg.systems import FOLDERS, NEEDS, SYSTEMS, Setup, SystemUnavailable
from urg.systems.folder import write_system
from urg.systems.needs import require_usable


class Asked(dict[str, str]):
    """Folders that note which were looked for, and have none."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def get(self, name: str, default: object = None) -> None:  # type: ignore[override]
        self.names.append(name)


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_says_what_it_needs(system: str) -> None:
    folders = Asked()
    try:
        SYSTEMS[system](Setup("quality", (), folders=folders))
    except SystemUnavailable:
        assert folders.names or "model" in NEEDS[system].settings
    assert set(folders.names) <= set(NEEDS[system].folders) <= set(FOLDERS)


def trained(folder: Path, system: str, parts: tuple[str, ...] = ("config.json",)) -> str:
    folder.mkdir()
    write_system(folder, system, {})
    for part in parts:
        (folder / part).write_text("{}")
    return str(folder)


def test_a_folder_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    other, bare = trained(tmp_path / "other", "simcls"), trained(tmp_path / "bare", "gen_fuser", ())
    (tmp_path / "judge.yaml").write_text("[1]")
    (tmp_path / "text.jsonl").write_text('{"id": "1", "text": "a"}')
    cases = {
        ("llm_blender", "gen_fuser", "/no/typo"): "there is no folder /no/typo for gen_fuser",
        ("llm_blender", "pair_ranker", other): "holds simcls, not pair_ranker",
        ("simcls_gen", "gen_fuser", bare): "has no config.json",
        ("judge_fuse", "judge", str(tmp_path / "judge.yaml")): "does not describe an endpoint",
        ("mlm_scoring", "mlm_scoring", bare): "cannot be loaded as a masked language model",
        ("imported", "imported", str(tmp_path / "text.jsonl")): "lacks 1 of 2 rows, such as 2",
    }
    for (system, name, folder), sentence in cases.items():
        with pytest.raises(UserError, match=sentence):
            require_usable({name: folder}, ["random", system], ["1", "2"], ["1", "2", "3"])
        require_usable({name: folder}, ["random", "urg"], ["1", "2"], ["1", "2", "3"])  # nobody reads it
    with pytest.raises(UserError, match="no system takes a folder named genfuser"):
        require_usable({"genfuser": "x"}, [], [], [])
    require_usable({"simcls": other, "gen_fuser": ""}, SYSTEMS, [], [])
