"""The paper's experiments: noise (Table 5), human preference (Table 6), cases (Table 8)."""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data_pipeline.errors import UserError
from data_pipeline.shards import ShardSet, TokenizedExample
from tests.urg.made_up import StubEnsemble, StubShards, random_rows, row
from urg.evaluation.cases import run_cases
from urg.evaluation.config import EvaluateConfig, HumanConfig
from urg.evaluation.human import COLUMNS, CRITERIA, fleiss_kappa, preference, run_human
from urg.evaluation.noise import change_interval, run_noise, table5
from urg.evaluation.noisy_texts import VARIANTS, fuse_all
from urg.systems import SYSTEMS, Fusion, Scores
from urg.systems.folder import write_system

Configure = Callable[..., EvaluateConfig]


@pytest.fixture
def stub() -> StubEnsemble:
    return StubEnsemble()


@pytest.fixture
def configure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Configure:
    """configure(rows, **settings) → a configuration that evaluates the rows with a stub of a model."""

    def make(rows: list[TokenizedExample], /, **settings: Any) -> EvaluateConfig:
        monkeypatch.setattr(ShardSet, "open", classmethod(lambda cls, folder: StubShards(rows)))
        model = tmp_path / "model"
        model.mkdir(exist_ok=True)
        (model / "urg.json").write_text(json.dumps({"label": "quality", "steps": 9}))
        return EvaluateConfig(**({"shards": "x", "output": str(tmp_path), "model": str(model)} | settings))

    return make


class Counting(StubEnsemble):
    """Says how many candidates it was given and asked to fuse, worse for more."""

    def rank_and_fuse_batch(self, queries: Sequence[Any], k: int | None = None, **_: Any) -> list[Any]:
        self.calls.append({"k": k, "texts": [query.candidates for query in queries]})
        return [SimpleNamespace(text="right " * 6 + "wrong " * ((k or 0) - 2)) for _ in queries]


def test_noise_adds_the_worst_to_the_two_best_and_compares_on_the_same_rows(
    configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["t0", "t1", "t2", "t3", "t4"]
    rows = [
        row("1", texts, output="right " * 6, quality=[0.1, 0.9, float("nan"), 0.5, 0.7]),
        row("2", texts, output="right " * 6, quality=[5.0, 4.0, 3.0, 2.0, 1.0]),
        row("few", texts[:3], output="right", quality=[1.0, 2.0, 3.0]),
        row("no reference", texts, output="", quality=[1.0, 2.0, 3.0, 4.0, 5.0]),
    ]
    stub = Counting()
    noise = run_noise(configure(rows), tmp_path, lambda config: stub)  # type: ignore[arg-type,return-value]
    assert (noise.rows, noise.of) == (2, 4)
    assert [call["k"] for call in stub.calls] == [2, 3, 4]
    assert stub.calls[0]["texts"] == [("t1", "t4"), ("t0", "t1")]
    assert stub.calls[1]["texts"] == [("t1", "t4", "t0"), ("t0", "t1", "t4")]
    assert stub.calls[2]["texts"] == [("t1", "t4", "t3", "t0"), ("t0", "t1", "t3", "t4")]  # the last two, worst last
    base, noisy = (noise.means["urg"][variant]["rougeL"] for variant in ("base", "12"))
    assert noise.change("urg", "12", "rougeL") == pytest.approx(100 * (noisy - base) / base)
    assert noise.change("urg", "12", "rougeL") == pytest.approx(100 * (12 / 13 - 1))
    assert noise.change("urg", "12", "bertscore") is None
    assert "--bertscore_model" in noise.missing["bertscore"]
    sheet = table5(noise, "here")
    first = sheet.groups[0].lines[0].cells
    assert first[:3] == ("urg", "12", "-7.69% [-7.69, -7.69]")  # both rows lose as much
    assert first[-5:] == ("URG", "-1.10%", "-0.22%", "-1.14%", "-4.69%")
    assert [line.cells[0] for line in sheet.groups[0].lines] == ["urg", "urg", "–", "–"]  # GenFuser: published only
    assert "2 of 4 rows" in capsys.readouterr().out
    run_noise(configure(rows), tmp_path, lambda config: stub)  # type: ignore[arg-type,return-value]
    assert len(stub.calls) == 3  # kept
    written = json.loads((tmp_path / "noise.json").read_text())
    assert written["change_percent"]["urg"]["12"]["rougeL"] == pytest.approx(100 * (12 / 13 - 1))


def test_a_negative_base_loses_when_it_falls(configure: Configure, tmp_path: Path) -> None:
    noise = SimpleNamespace(means={"urg": {"base": {"bartscore": -2.0}, "12": {"bartscore": -3.0}}})
    from urg.evaluation.noise import Noise

    assert Noise.change(noise, "urg", "12", "bartscore") == -50.0  # type: ignore[arg-type]


def test_the_interval_of_a_change_covers_it_and_pairs_the_rows() -> None:
    random = np.random.default_rng(0)
    base = random.uniform(0.2, 0.9, 200)
    noisy = 0.9 * base + random.normal(0, 0.01, 200)  # every row loses a tenth: sure, however the rows differ
    found = change_interval(base, noisy, 500, 0.95, 0)
    assert found is not None
    low, high = found
    assert -10.5 < low < -9.9 < high + 0.5 < -9.0
    assert change_interval(np.zeros(5), np.ones(5), 100, 0.95, 0) is None
    missing = np.where(np.arange(200) < 20, np.nan, noisy)
    assert change_interval(base, missing, 500, 0.95, 0) == pytest.approx(
        change_interval(base[20:], noisy[20:], 500, 0.95, 0)
    )


@dataclass(frozen=True)
class Settings:
    k: int = 3


class FusesBest:
    """As GenFuser does: the K best by score, K from the model's settings."""

    def __init__(self, model: Any = None) -> None:
        self.model = model or SimpleNamespace(settings=Settings())

    def fuse(self, rows: Sequence[TokenizedExample], scores: Sequence[Scores]) -> list[Fusion]:
        order = [np.argsort(-own)[: self.model.settings.k] for own in scores]
        return [Fusion("+".join(r.texts[i] for i in own), tuple(own)) for r, own in zip(rows, order, strict=True)]


def test_a_fuser_of_the_k_best_fuses_all_that_it_is_given(configure: Configure) -> None:
    rows = [row("1", ["a", "b", "c", "d"], quality=[1, 2, 3, 4])]
    fuser = FusesBest()
    assert fuse_all("gen", fuser, rows, configure(rows)) == ["a+b+c+d"]
    assert fuser.model.settings.k == 3  # as it was
    with pytest.raises(UserError, match="gen does not say how many"):
        fuse_all("gen", SimpleNamespace(fuse=None), rows, configure(rows))  # type: ignore[arg-type]


def test_noise_without_what_it_needs(configure: Configure, tmp_path: Path, stub: StubEnsemble) -> None:
    few = [row("1", ["a", "b", "c"], output="r", quality=[1.0, 2.0, 3.0])]
    with pytest.raises(UserError, match="no row has a reference and 4 candidates"):
        run_noise(configure(few), tmp_path, lambda config: stub)  # type: ignore[arg-type,return-value]
    with pytest.raises(UserError, match="none of the systems writes texts"):
        run_noise(configure(random_rows(3), model=None, label="quality"), tmp_path)
    assert list(VARIANTS.values()) == [0, 1, 2]


def test_noise_starts_no_pool_for_systems_that_only_rank(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `all`: those that write, and a new one that nothing is known of. A fold's rows come with the whole split's
    ids."""
    asked = []

    def pool(answerer: Any, made: tuple[Any, ...], *_: Any) -> dict[str, Any]:
        asked.append(made)
        return {}

    monkeypatch.setattr("urg.evaluation.noisy_texts.lines_of_pool", pool)
    monkeypatch.setitem(SYSTEMS, "new_one", SYSTEMS["urg"])
    rows = random_rows(12)
    with pytest.raises(UserError, match="none of the systems writes texts"):
        run_noise(configure(rows, workers=2, rows=6), tmp_path)
    ((_, _, names, _, _, ids),) = asked
    assert list(names) == ["llm_blender", "urg", "new_one"]  # SimCLS-Gen and SummaReranker-Gen are of the same fuser
    assert list(ids) == [row.id for row in rows]
    with pytest.raises(UserError, match=r"writes texts \(no fuser was asked for\)"):
        run_noise(configure(rows, workers=2, systems="pair_ranker,urg_rank"), tmp_path)
    assert len(asked) == 1


def test_gen_fuser_stands_under_llm_blenders_name_and_whoever_ranks_for_it_is_not_loaded(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gen").mkdir()
    write_system(tmp_path / "gen", "gen_fuser", {})
    (tmp_path / "gen" / "config.json").touch()
    loaded = []

    def load(folder: str) -> Any:
        loaded.append(folder)
        return SimpleNamespace(settings=Settings(), device="cpu")

    monkeypatch.setattr("urg.systems.gen_fuser.GenFuser.from_pretrained", load)
    monkeypatch.setattr("urg.systems.gen_fuser.on_device", lambda model, setup: model)
    monkeypatch.setattr("urg.systems.gen_fuser.FusesBest", lambda model, *_: FusesBest(model))
    rows, folders = random_rows(6), {"gen_fuser": str(tmp_path / "gen")}  # no ranker of any has a folder
    for systems, name in (("all", "llm_blender"), ("simcls_gen,summareranker_gen", "simcls_gen")):
        config = configure(rows, systems=systems, folders=folders, model=None, label="quality", fresh=True)
        noise = run_noise(config, tmp_path)
        assert list(noise.means) == [name]
    assert loaded == [folders["gen_fuser"]] * 2
    published_as = {line.cells[0]: line.cells[-5] for line in table5(noise, "here").groups[0].lines}
    assert published_as["simcls_gen"] == "LLM-Blender (generator)"


def test_noise_looks_at_folders_before_the_first_text(configure: Configure, tmp_path: Path, stub: StubEnsemble) -> None:
    config = configure(random_rows(12), systems="urg,llm_blender", folders={"gen_fuser": str(tmp_path / "absent")})
    with pytest.raises(UserError, match="absent"):
        run_noise(config, tmp_path, lambda config: stub)  # type: ignore[arg-type,return-value]
    assert not stub.calls


def exported(configure: Configure, folder: Path, stub: StubEnsemble, count: int = 12, **human: Any) -> Path:
    config = configure(random_rows(40), human=HumanConfig("random", "urg", pairs=count, **human))
    run_human(config, folder, lambda _: stub)  # type: ignore[arg-type,return-value]
    return folder / "human"


def filled(folder: Path, name: str, rate: Callable[[str, dict[str, Any]], int]) -> Path:
    """A copy of the sheet, each answer rated by `rate` (its system, its key)."""
    key = json.loads((folder / "key.json").read_text())["items"]
    lines = list(csv.DictReader(io.StringIO((folder / "sheet.csv").read_text("utf-8"))))
    for line in lines:
        for column in COLUMNS:
            line[column] = str(rate(key[line["item"]][column[-1]], key[line["item"]]))
    path = folder / f"{name}.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    return path


def test_the_sheet_is_blinded_shuffled_and_seeded(configure: Configure, tmp_path: Path, stub: StubEnsemble) -> None:
    folder = exported(configure, tmp_path, stub)
    sheet, page = (folder / "sheet.csv").read_text("utf-8"), (folder / "rate.html").read_text("utf-8")
    key = json.loads((folder / "key.json").read_text())
    for text in (sheet, page):
        assert "row/" not in text  # the id
        assert "model-" not in text
        assert "random" not in text
        assert "urg" not in text.lower()
    sides = [sides["1"] for sides in key["items"].values()]
    assert {"random", "urg"} == set(sides)
    ids = [sides["id"] for sides in key["items"].values()]
    assert len(set(ids)) == 12
    assert ids != sorted(ids, key=lambda name: int(name.split("/")[1]))
    lines = list(csv.DictReader(io.StringIO(sheet)))
    kept = {made.id: made for made in random_rows(40)}
    for line in lines:
        sides = key["items"][line["item"]]
        chosen = line["answer_1"] if sides["1"] == "random" else line["answer_2"]
        assert chosen in kept[sides["id"]].texts
        assert all(line[column] == "" for column in COLUMNS)
    again = sheet, json.dumps(key)
    exported(configure, tmp_path, stub)
    assert (
        (folder / "sheet.csv").read_text("utf-8"),
        json.dumps(json.loads((folder / "key.json").read_text())),
    ) == again


def test_the_page_is_whole_offline_and_escapes_the_texts(
    configure: Configure, tmp_path: Path, stub: StubEnsemble
) -> None:
    attack = '</script><img src=x onerror=alert(1)>"'
    rows = [row(str(i), [f"{attack}{i}", "=1+1"], ["a", "b"], instruction=attack, quality=[1, 2]) for i in range(3)]
    run_human(configure(rows, human=HumanConfig("a", "b")), tmp_path)
    page = (tmp_path / "human" / "rate.html").read_text("utf-8")
    assert "<img" not in page
    assert html.escape(attack) in page
    assert page.count('type="radio"') == 3 * 2 * len(CRITERIA) * 5
    assert "http" not in page
    assert ",'=1+1," in (tmp_path / "human" / "sheet.csv").read_text("utf-8")  # no formula for a spreadsheet


def test_ratings_become_percents_kappa_and_a_sign_test(
    configure: Configure, tmp_path: Path, stub: StubEnsemble, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = exported(configure, tmp_path, stub)
    files = [filled(folder, name, lambda system, _: 5 if system == "urg" else 2) for name in "ab"]
    files.append(filled(folder, "c", lambda system, sides: 4 if int(sides["id"][4:]) % 2 else 1 + (system == "urg")))
    config = EvaluateConfig(output=str(tmp_path), human=HumanConfig(ratings=tuple(map(str, files))))
    odd = sum(int(s["id"][4:]) % 2 for s in json.loads((folder / "key.json").read_text())["items"].values())
    for found in run_human(config, tmp_path):
        assert found.first_percent == 0.0  # type: ignore[union-attr]
        assert found.tie_percent == pytest.approx(100 * odd / 36)  # type: ignore[union-attr]
        assert found.second_percent == pytest.approx(100 * (36 - odd) / 36)  # type: ignore[union-attr]
        assert (found.first_wins, found.second_wins) == (0, 12)  # type: ignore[union-attr]
        assert found.p == pytest.approx(2 / 2**12)  # type: ignore[union-attr]
    printed = capsys.readouterr().out
    assert "12 items, 3 raters" in printed
    assert json.loads((folder / "preferences.json").read_text())["raters"] == 3
    assert (folder / "preferences.tex").is_file()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda lines: lines[2].update(overall_1=""), "no rating for item 3, column overall_1"),
        (lambda lines: lines[2].update(overall_1="6"), "the rating 6, which is none of 1, 2, 3, 4, 5"),
        (lambda lines: lines[2].update(overall_1="good"), "the rating good"),
        (lambda lines: lines[5].update(sheet="other"), "are of another sheet"),
        (lambda lines: lines.pop(), "lack item 12 and 0 others"),
        (lambda lines: lines.append(lines[0]), "item 1, twice"),
        (lambda lines: lines[0].update(item="77"), "item 77, which is not on the sheet"),
        (lambda lines: [line.pop("overall_2") for line in lines], "no column overall_2"),
    ],
)
def test_wrong_ratings_are_one_clear_sentence(
    configure: Configure, tmp_path: Path, stub: StubEnsemble, wrong: Callable[[Any], Any], message: str
) -> None:
    folder = exported(configure, tmp_path, stub)
    good, bad = (filled(folder, name, lambda system, _: 3) for name in ("good", "bad"))
    lines = list(csv.DictReader(io.StringIO(bad.read_text("utf-8"))))
    wrong(lines)
    with bad.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    config = EvaluateConfig(output=str(tmp_path), human=HumanConfig(ratings=(str(good), str(bad))))
    with pytest.raises(UserError, match=message) as error:
        run_human(config, tmp_path)
    assert str(bad) in str(error.value)


def test_ratings_without_a_sheet_or_from_one_rater_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"key\.json cannot be read"):
        run_human(EvaluateConfig(output=str(tmp_path), human=HumanConfig(ratings=("a.csv", "b.csv"))), tmp_path)
    with pytest.raises(ValueError, match="2 raters or more"):
        HumanConfig(ratings=("a.csv",))
    with pytest.raises(ValueError, match="two different systems"):
        HumanConfig(first="urg", second="urg")


def test_the_same_file_twice_and_a_missing_file_are_refused(
    configure: Configure, tmp_path: Path, stub: StubEnsemble
) -> None:
    folder = exported(configure, tmp_path, stub)
    good = str(filled(folder, "good", lambda system, _: 3))
    for ratings, message in (((good, good), "given twice"), ((good, "gone.csv"), r"gone\.csv cannot be read")):
        with pytest.raises(UserError, match=message):
            run_human(EvaluateConfig(output=str(tmp_path), human=HumanConfig(ratings=ratings)), tmp_path)


def test_a_system_without_answers_cannot_be_rated(configure: Configure, tmp_path: Path) -> None:
    config = configure(random_rows(4), human=HumanConfig("random", "urg"), model=None, label="quality")
    with pytest.raises(UserError, match="no answers of urg to rate: no URG model was given"):
        run_human(config, tmp_path)
    same = [replace(made, output=made.texts[0]) for made in random_rows(3, models=1)]
    with pytest.raises(UserError, match="never answer the same row differently"):
        run_human(configure(same, human=HumanConfig("model-0", "reference")), tmp_path)


def test_fleiss_kappa_of_the_textbook() -> None:
    """Fleiss 1971's layout: 10 subjects, 14 raters, 5 categories; kappa 0.210."""
    counts = [
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1], [7, 7, 0, 0, 0],
        [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]  # fmt: skip
    ratings = np.array([np.repeat(np.arange(5), line) for line in counts]).T
    assert fleiss_kappa(ratings) == pytest.approx(0.210, abs=5e-4)
    assert fleiss_kappa(np.array([[1, -1], [1, -1]])) == 1.0
    assert fleiss_kappa(np.ones((3, 4))) is None


def test_preference_takes_sides_into_account_and_ties_out_of_the_sign_test() -> None:
    scores = np.array([[2, 2, 0], [1, -1, 0]])  # answer 1 minus answer 2
    found = preference("overall", scores, np.array([1, -1, 1]))
    assert (found.first_percent, found.second_percent) == (pytest.approx(50.0), pytest.approx(100 / 6))
    assert (found.first_wins, found.second_wins, found.p) == (1, 1, 1.0)


def test_cases_show_every_answer_and_nothing_ends_a_block(
    configure: Configure, tmp_path: Path, stub: StubEnsemble
) -> None:
    rows = [*random_rows(5), row("evil", ["``` \n# a heading", "wrong"], output="`", quality=[1.0, 0.0])]
    run_cases(configure(rows, cases=6), tmp_path, lambda config: stub)  # type: ignore[arg-type,return-value]
    text = (tmp_path / "cases.md").read_text("utf-8")
    assert text.count("## ") == 6
    assert "````text\n``` \n# a heading\n````" in text
    for name in ("**model-0**", r"**urg (from ", r"**urg\_rank** picks", "**oracle** picks", "**Reference**"):
        assert name in text
    assert "<h1>Cases</h1>" in (tmp_path / "cases.html").read_text("utf-8")
    with pytest.raises(UserError, match="cases=0"):
        run_cases(configure(rows, cases=0), tmp_path)
