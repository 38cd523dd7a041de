"""Table 6 of the URG paper: people rate two systems' answers, blind, on three criteria from 1 to 5.

Without ratings the sheet is written: `sheet.csv` and `rate.html` (the same, to rate in a browser) for the raters, and
`key.json`, which says who is who and is not for them. With `--human.ratings` the raters' files are read; out come, per
criterion, how often each system was preferred, the agreement of the raters, and a sign test. No rating is made up.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import UserError
from urg.evaluation.config import EvaluateConfig

if TYPE_CHECKING:
    from urg.evaluation.answering import Load
    from urg.evaluation.sheet import Sheet
    from urg.evaluation.subject import Subject

CRITERIA = ("appropriateness", "informativeness", "overall")
SCALE = ("1", "2", "3", "4", "5")
COLUMNS = tuple(f"{criterion}_{side}" for criterion in CRITERIA for side in (1, 2))  # of a rater's file, beside item
REFERENCE = "reference"


@dataclass(frozen=True)
class Item:
    """One pair, as a rater sees it: answers[0] is answer 1."""

    number: int
    row_id: str
    question: str
    systems: tuple[str, str]
    answers: tuple[str, str]


@dataclass(frozen=True)
class Preference:
    """One criterion. Percents are of all single judgements (item × rater); wins are of items, by the raters' sum."""

    criterion: str
    first_percent: float
    tie_percent: float
    second_percent: float
    kappa: float | None  # None: all raters always said the same one thing, where kappa is not defined
    first_wins: int
    second_wins: int
    p: float  # sign test over the items that are no tie, two-sided


def run_human(config: EvaluateConfig, output: Path, load: Load | None = None) -> list[Preference] | list[Item]:
    """Write the sheet, or read the ratings. Returns what was written or found."""
    folder = output / "human"
    folder.mkdir(exist_ok=True)
    return import_ratings(folder, config.human.ratings) if config.human.ratings else export_sheet(config, output, load)


def export_sheet(config: EvaluateConfig, output: Path, load: Load | None = None) -> list[Item]:
    """Draw the pairs, and write sheet.csv, rate.html and key.json. UserError where a system has no answers."""
    from urg.evaluation.human_page import rating_page
    from urg.evaluation.results import write_json, write_text
    from urg.evaluation.subject import open_subject

    subject = open_subject(config)
    answers = {name: _texts(name, subject, output, load) for name in (config.human.first, config.human.second)}
    items = draw(subject, answers, config.human.pairs, config.seed)
    folder = output / "human"
    key = {str(item.number): {"id": item.row_id, "1": item.systems[0], "2": item.systems[1]} for item in items}
    texts = [(item.question, item.answers) for item in items]
    sheet_id = hashlib.sha256(json.dumps([key, texts]).encode()).hexdigest()[:12]  # tells a rater nothing
    names = {"sheet": sheet_id, "first": config.human.first, "second": config.human.second}
    write_json(folder / "key.json", names | {"items": key})
    write_text(folder / "sheet.csv", sheet_csv(items, sheet_id))
    write_text(folder / "rate.html", rating_page(items, CRITERIA, sheet_id))
    print(f"{len(items)} pairs of {config.human.first} and {config.human.second}, blinded and shuffled")
    print(f"for raters  {folder / 'rate.html'} (in a browser, offline) or {folder / 'sheet.csv'}: one copy each")
    print(f"keep back   {folder / 'key.json'}: it says which answer is whose")
    command = f"python -m urg.evaluate --experiment human --output {output}"
    print(f"then        {command} --human.ratings '[A.csv, B.csv, C.csv]'")
    return items


def _texts(name: str, subject: Subject, output: Path, load: Load | None) -> dict[str, str]:
    """id → a system's answer, or the reference. UserError where there are none."""
    from dataclasses import replace

    from urg.evaluation.answer_store import AnswerStore
    from urg.evaluation.answering import answer, load_ensemble
    from urg.evaluation.progress import Progress

    rows, config = subject.rows, replace(subject.config, systems=name)
    if name == REFERENCE:
        return {row.id: row.output for row in rows if row.output.strip()}
    store = AnswerStore(output, config, rows, subject.label)
    load = load or load_ensemble
    systems, unavailable = answer(rows, subject.label, config, store, load, Progress(), subject.ids)
    if not systems:
        raise UserError(f"there are no answers of {name} to rate: {unavailable.get(name, 'it answered no row')}")
    return {row.id: a.text for row, a in zip(rows, systems[0].answer(rows), strict=True) if a is not None}


def draw(subject: Subject, answers: dict[str, dict[str, str]], count: int, seed: int) -> list[Item]:
    """`count` rows at random where both systems differ (all, where there are fewer), sides and order shuffled."""
    first, second = answers
    both = [row for row in subject.rows if row.id in answers[first] and row.id in answers[second]]
    apart = [row for row in both if answers[first][row.id].strip() != answers[second][row.id].strip()]
    if not apart:
        raise UserError(f"{first} and {second} never answer the same row differently, so there is nothing to rate")
    generator = np.random.default_rng(seed)
    items = []
    for number, index in enumerate(generator.permutation(len(apart))[:count].tolist(), start=1):
        row = apart[index]
        systems = (first, second) if generator.random() < 0.5 else (second, first)
        question = f"{row.instruction}\n{row.input}".strip()
        items.append(
            Item(number, row.id, question, systems, (answers[systems[0]][row.id], answers[systems[1]][row.id]))
        )
    return items


def sheet_csv(items: Sequence[Item], sheet_id: str) -> str:
    """The sheet as CSV: item, the sheet's id, question, both answers, and an empty column a rating."""
    import io

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["item", "sheet", "question", "answer_1", "answer_2", *COLUMNS])
    for item in items:
        texts = [_no_formula(text) for text in (item.question, *item.answers)]
        writer.writerow([item.number, sheet_id, *texts, *[""] * len(COLUMNS)])
    return out.getvalue()


def _no_formula(text: str) -> str:
    """A text that a spreadsheet takes for text: one that begins like a formula gets an apostrophe."""
    return f"'{text}" if text[:1] in "=+-@\t\r" and text else text


def import_ratings(folder: Path, files: Sequence[str]) -> list[Preference]:
    """Read the raters' files, write preferences.json, .md and .tex, print the table. UserError for a wrong file."""
    from urg.evaluation.results import write_json, write_sheets
    from urg.evaluation.sheet import plain

    key = _key(folder / "key.json")
    paths = [Path(file).expanduser() for file in files]
    twice = {path.resolve() for path in paths if [p.resolve() for p in paths].count(path.resolve()) > 1}
    if twice:
        raise UserError(f"{twice.pop()} is given twice: name the file of each rater once")
    scores_RIC = np.array([read_ratings(path, list(key["items"]), key["sheet"]) for path in paths])
    sides_I = np.array([1 if sides["1"] == key["first"] else -1 for sides in key["items"].values()])
    found = [preference(criterion, scores_RIC[:, :, c], sides_I) for c, criterion in enumerate(CRITERIA)]
    table = table6(found, key["first"], key["second"], len(paths), len(sides_I))
    described = {"first": key["first"], "second": key["second"], "raters": len(paths), "items": len(sides_I)}
    write_json(folder / "preferences.json", described | {"criteria": [asdict(each) for each in found]})
    write_sheets(folder / "preferences", [table])
    print(plain(table))
    return found


def _key(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}): it says whose answers were rated; "
            "name by --output the folder that the sheet was written to"
        ) from error


def read_ratings(path: Path, items: Sequence[str], sheet_id: str) -> list[list[int]]:
    """[I, C] of one rater: score of answer 1 minus that of answer 2. UserError for what is no rating."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"the ratings {path} cannot be read ({type(error).__name__}); give the rater's CSV") from error
    lacking = [column for column in ("item", "sheet", *COLUMNS) if not lines or column not in lines[0]]
    if lacking:
        raise UserError(f"the ratings {path} have no column {lacking[0]}; give a filled copy of sheet.csv")
    by_item: dict[str, dict[str, str]] = {}
    for line in lines:
        item = (line["item"] or "").strip()
        if (line["sheet"] or "").strip() != sheet_id:
            raise UserError(f"the ratings {path} are of another sheet than key.json; give those of this one")
        if item not in items or item in by_item:
            what = "twice" if item in by_item else "which is not on the sheet"
            raise UserError(f"the ratings {path} have item {item or '(blank)'}, {what}; give one line for each item")
        by_item[item] = line
    absent = [item for item in items if item not in by_item]
    if absent:
        raise UserError(
            f"the ratings {path} lack item {absent[0]} and {len(absent) - 1} others; every item must be rated"
        )
    return [[_score(path, by_item[i], f"{c}_1") - _score(path, by_item[i], f"{c}_2") for c in CRITERIA] for i in items]


def _score(path: Path, line: dict[str, str], column: str) -> int:
    value = (line[column] or "").strip()
    if value in SCALE:
        return int(value)
    problem = f"the rating {value}, which is none of {', '.join(SCALE)}" if value else "no rating"
    raise UserError(f"the ratings {path} have {problem} for item {line['item']}, column {column}; ask the rater")


def preference(criterion: str, scores_RI: NDArray[np.int64], sides_I: NDArray[np.int64]) -> Preference:
    """scores: [raters, items], answer 1 minus answer 2. sides [I]: 1 where answer 1 is the first system's, else −1."""
    from scipy.stats import binomtest

    towards_first = np.sign(scores_RI * sides_I)
    shares = [100 * float((towards_first == sign).mean()) for sign in (1, 0, -1)]
    sums = np.sign((scores_RI * sides_I).sum(axis=0))
    wins, losses = int((sums > 0).sum()), int((sums < 0).sum())
    p = float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
    return Preference(criterion, shares[0], shares[1], shares[2], fleiss_kappa(towards_first), wins, losses, p)


def fleiss_kappa(categories_RI: NDArray[Any]) -> float | None:
    """Agreement of raters beyond chance, at most 1; None where all ratings are one category. Source: Fleiss 1971."""
    raters, items = categories_RI.shape
    counts_IK = np.stack([(categories_RI == each).sum(axis=0) for each in np.unique(categories_RI)], axis=1)
    agreed = float(((counts_IK**2).sum(axis=1) - raters).sum() / (items * raters * (raters - 1)))
    chance = float(((counts_IK.sum(axis=0) / (items * raters)) ** 2).sum())
    return None if np.isclose(chance, 1.0) else (agreed - chance) / (1 - chance)


def table6(found: Sequence[Preference], first: str, second: str, raters: int, items: int) -> Sheet:
    """Table 6, ours beside what was published of LLM-Blender and URG."""
    from urg.evaluation.paper_tables import published
    from urg.evaluation.sheet import NONE, Group, Line, Sheet

    source = published()["urg"]
    printed = {row["name"]: row["values"] for row in source["table6"]["rows"]}
    same = (first, second) == ("llm_blender", "urg")
    lines = []
    for each in found:
        stars = "**" if each.p < 0.01 else "*" if each.p < 0.05 else ""
        shares = (f"{value:.2f}" for value in (each.first_percent, each.tie_percent, each.second_percent))
        kappa = NONE if each.kappa is None else f"{each.kappa:.3f}"
        theirs = printed[each.criterion] if same else []
        shown = [f"{theirs[0]:.2f}", f"{theirs[1]:.2f}", f"{theirs[2]:.3f}"] if theirs else [NONE] * 3
        lines.append(Line((each.criterion, *shares, kappa, f"{each.p:.4f}{stars}", *shown)))
    return Sheet(
        f"Table 6, human preference in percent: {first} against {second}",
        ("criterion", first, "tie", second, "kappa", "sign test p", "LLM-Blender", "URG", "kappa"),
        (Group("", tuple(lines)),),
        spans=(("", 1), ("ours", 5), ("published", 3)),
        notes=(
            f"ours: {items} items, {raters} raters; percent of single judgements; kappa: Fleiss, of three categories; "
            "the sign test is over items by the raters' sum, ties left out. Equal answers were not shown.",
            f"published: {source['source']}; a comparison without ties.",
        ),
    )
