from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from data_pipeline.config import PrepareConfig
from data_pipeline.errors import UserError
from data_pipeline.leaks import Prompts, find_leaks, normalized_prompt, prompt_digest, prompt_signature, similarity
from data_pipeline.prepare import prepare
from data_pipeline.schema import Example
from data_pipeline.shards import ShardSet


def prompt(instruction: str, question_input: str = "") -> str:
    return normalized_prompt(Example("1", instruction, question_input, "", ()))


def prompts(texts: list[str]) -> Prompts:
    found = Prompts()
    for text in texts:
        found.digests.append(prompt_digest(text))
        found.signatures += prompt_signature(text)
    return found


def test_prompts_agree_up_to_case_width_and_white_space():
    assert prompt("What  is\tＡ?", "") == prompt("", "what is a?\n")
    assert prompt("a", "b") == prompt("a\nb") == prompt("a b")
    assert prompt("a") != prompt("b")


def test_a_row_leaks_into_a_later_split_only():
    splits = {
        "test": prompts(["a", "b"]),
        "train": prompts(["x", "a", "a", "c"]),
        "dev": prompts(["c", "b", "y"]),
        "more": prompts(["x"]),
    }
    found = find_leaks(splits, None, lambda *_: "")
    listed = {split: {later: rows.tolist() for later, rows in by.items()} for split, by in found.items()}
    assert listed == {"train": {"test": [1, 2], "dev": [3], "more": [0]}, "dev": {"test": [1]}}
    assert splits["train"].repeated() == 1
    assert splits["train"].without({1}).repeated() == 0
    assert splits["train"].without({0}).signature(0).tolist() == splits["test"].signature(0).tolist()


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_near_duplicates_are_those_of_an_exact_comparison(threshold: float):
    random = Random(0)
    words = [f"word{i}" for i in range(300)]
    base = [" ".join(random.choices(words, k=12)) for _ in range(60)]

    def changed(text: str, changes: int) -> str:
        parts = text.split()
        for place in random.sample(range(len(parts)), changes):
            parts[place] = random.choice(words)
        return " ".join(parts)

    texts = {"train": [changed(text, i % 6) for i, text in enumerate(base)], "test": base}
    splits = {name: prompts(each) for name, each in texts.items()}
    found = find_leaks(splits, threshold, lambda split, row: texts[split][row])["train"]["test"].tolist()
    exact = [
        row for row, text in enumerate(texts["train"]) if max(similarity(text, each) for each in base) >= threshold
    ]
    assert set(found) <= set(exact)
    assert len(found) >= 0.9 * len(exact)
    assert 10 < len(exact) < 60


@pytest.fixture
def leaking(make_rows: Callable[..., Any], write_rows: Callable[..., Path], tokenizer_folder: Path, tmp_path: Path):
    """leaking(**settings): the manifest and the quarantine of a set whose train split leaks three rows, dev one."""
    train, dev, test = make_rows(12, "train"), make_rows(4, "dev"), make_rows(4, "test")
    train[3] |= {"instruction": test[0]["instruction"].upper(), "input": test[0]["input"]}
    train[7] |= {"instruction": dev[1]["instruction"], "input": dev[1]["input"]}
    train[8] |= {"instruction": f"{test[2]['instruction']} {test[2]['instruction']}!", "input": test[2]["input"]}
    test[2] |= {"instruction": f"{test[2]['instruction']} {test[2]['instruction']}"}
    dev[2] |= {"instruction": test[3]["instruction"], "input": test[3]["input"]}
    train[9] |= {"instruction": train[10]["instruction"], "input": train[10]["input"]}
    train[0]["candidates"][2]["text"] = train[0]["candidates"][0]["text"]
    train[0]["candidates"][1]["text"] += "\x00"
    source = {
        name: str(write_rows(f"{name}.jsonl", rows))
        for name, rows in zip(("train", "dev", "test"), ([b"{", *train], dev, test), strict=True)
    }

    def run(**settings: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        config = PrepareConfig(source, output=str(tmp_path / "out"), tokenizer=str(tokenizer_folder), **settings)
        folder = prepare(config)
        lines = (folder / "quarantine.jsonl").read_text().splitlines()
        return ShardSet.open(folder).manifest, [json.loads(line) for line in lines]

    return run


def test_leaks_are_reported_and_nothing_is_dropped(without_ray: None, leaking: Any, capsys: pytest.CaptureFixture):
    manifest, rejected = leaking()
    assert manifest["prompts"] == {
        "leaks": {"train": {"dev": 1, "test": 1, "any": 2}, "dev": {"test": 1, "any": 1}},
        "action": "report",
        "near_duplicates": None,
        "repeated_within": {"train": 1, "dev": 0, "test": 0},
    }
    assert [(each["line"], each["reason"]) for each in rejected] == [(1, "bad_json")]
    assert manifest["splits"]["train"]["identical_candidates"] == {"rows": 1, "candidates": 1}
    assert manifest["characters"] == {"rule": "keep", "texts": {"control": 1}}
    told = capsys.readouterr().out
    assert "leaks: 2 rows of train have a prompt of dev, test (kept; --leaks drop takes them out)" in told
    assert "identical candidates: 1, kept and marked" in told
    assert "texts with odd characters: control 1 (kept" in told


def test_leaks_are_dropped_to_the_quarantine_with_their_line(without_ray: None, leaking: Any):
    manifest, rejected = leaking(leaks="drop")
    assert sorted((Path(each["file"]).name, each["line"], each["reason"]) for each in rejected) == [
        ("dev.jsonl", 3, "leak"),
        ("train.jsonl", 1, "bad_json"),
        ("train.jsonl", 5, "leak"),
        ("train.jsonl", 9, "leak"),
    ]
    assert manifest["counts"]["train"] == {"input": 13, "kept": 10, "rejected": {"bad_json": 1, "leak": 2}}
    assert manifest["counts"]["dev"] == {"input": 4, "kept": 3, "rejected": {"leak": 1}}
    assert manifest["counts"]["test"] == {"input": 4, "kept": 4, "rejected": {}}


def test_near_duplicates_are_dropped_by_option(without_ray: None, leaking: Any):
    manifest, rejected = leaking(leaks="drop", near_duplicates=0.8)
    assert manifest["prompts"]["leaks"]["train"] == {"dev": 1, "test": 2, "any": 3}
    dropped = {(Path(each["file"]).name, each["line"]) for each in rejected if each["reason"] == "leak"}
    assert dropped == {("train.jsonl", 5), ("train.jsonl", 9), ("train.jsonl", 10), ("dev.jsonl", 3)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"leaks": "hide"}, "leaks is hide"),
        ({"near_duplicates": 80.0}, "near_duplicates is 80"),
        ({"characters": "x"}, "characters is x"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        PrepareConfig(**settings)
