"""Predictions that the user brings: what they must hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from tests.urg.systems.tiny import ROWS
from urg.systems import SYSTEMS, Setup
from urg.systems.imported import imported_files
from urg.systems.needs import require_usable


def setup(file: Path, ids: tuple[str, ...] | None = ("1", "2", "3", "4")) -> Setup:
    return Setup("quality", (), folders={"imported": str(file)}, ids=ids)


def written(folder: Path, *rows: tuple[object, object]) -> Path:
    file = folder / "chatgpt.jsonl"
    file.write_text("\n\n".join(json.dumps({"id": row_id, "text": text}) for row_id, text in rows))
    return file


ALL = (("3", "c"), ("1", "a"), (2, ""), ("4", "d"))


def test_each_row_gets_the_text_of_its_id(tmp_path: Path) -> None:
    system = SYSTEMS["imported"](setup(written(tmp_path, *ALL)))
    answers = system.answer(ROWS[:3])
    assert [answer and (answer.text, answer.picked, answer.scores) for answer in answers] == [
        ("a", None, None),
        ("", None, None),
        ("c", None, None),
    ]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (ALL[:2], "lacks 2 of 4 rows, such as 2: give one for each row"),
        ((*ALL, ("9", "x")), "has 1 ids that are not in the split, such as 9"),
        ((*ALL[1:], ("9", "x")), "lacks 1 of 4 rows, such as 3 and has 1 ids that are not in the split, such as 9"),
        ((*ALL, ("1", "again")), "has the id 1 more than once, again in line 9"),
        ((("1", None),), "line 1 is no prediction"),
        (((None, "a"),), "line 1 is no prediction"),
    ],
    ids=["missing", "extra", "both", "doubled", "no text", "no id"],
)
def test_ids_that_do_not_fit_the_split_are_one_sentence(
    tmp_path: Path, rows: tuple[tuple[object, object], ...], sentence: str
) -> None:
    ids, folders = ("1", "2", "3", "4"), {"imported": str(written(tmp_path, *rows))}
    with pytest.raises(UserError, match=sentence):
        require_usable(folders, ["imported"], ids, ids)


def test_a_file_may_hold_the_whole_split_or_the_rows_that_are_asked(tmp_path: Path) -> None:
    for rows in (ALL, ALL[:2]):
        system = SYSTEMS["imported"](setup(written(tmp_path, *rows)))
        assert [answer and answer.text for answer in system.answer([ROWS[0], ROWS[2]])] == ["a", "c"]
        require_usable({"imported": str(tmp_path / "chatgpt.jsonl")}, ["imported"], ("1", "3"), ("1", "2", "3", "4"))
    with pytest.raises(UserError, match="has 1 ids that are not in the split, such as 9"):
        SYSTEMS["imported"](setup(written(tmp_path, ("9", "x"))))


def test_without_the_ids_beforehand_a_missing_row_shows_when_it_is_asked_for(tmp_path: Path) -> None:
    system = SYSTEMS["imported"](setup(written(tmp_path, *ALL[:2]), ids=None))
    with pytest.raises(UserError, match="lacks 1 of 2 rows, such as 2"):
        system.answer(ROWS[:2])


def test_several_files_are_systems_under_the_names_that_were_given_to_them(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    few = written(tmp_path / "other", ("1", "A"), ("3", "C"))
    files = {"chatgpt": str(written(tmp_path, *ALL)), "people": str(few)}
    found = imported_files(files, {"random"}, ("1", "3"), ("1", "2", "3", "4"))
    rows = [ROWS[0], ROWS[2]]
    texts = {name: [answer and answer.text for answer in system.answer(rows)] for name, system in found.items()}
    assert texts == {"chatgpt": ["a", "c"], "people": ["A", "C"]}
    assert {(system.name, system.kind) for system in found.values()} == {("chatgpt", "closed"), ("people", "closed")}
    with pytest.raises(UserError, match=r"imported\.random: is the name of another system"):
        imported_files({"random": files["chatgpt"]}, {"random"}, (), ("1", "2", "3", "4"))
    with pytest.raises(UserError, match=r"other/chatgpt\.jsonl lacks 1 of 3 rows, such as 2"):
        imported_files(files, (), ("1", "2", "3"), ("1", "2", "3", "4"))


@pytest.mark.parametrize("content", ["not json", "[1]", b"\xff\xfe"])
def test_a_file_of_something_else_is_one_sentence(tmp_path: Path, content: str | bytes) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=r"x\.jsonl"):
        SYSTEMS["imported"](setup(file))
    with pytest.raises(UserError, match="cannot be read"):
        SYSTEMS["imported"](setup(tmp_path / "absent.jsonl"))
