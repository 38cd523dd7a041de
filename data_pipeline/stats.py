"""What a set holds: `python -m data_pipeline.stats --input ROWS-or-PREPARED --output FOLDER`.

One pass over the rows, whatever their source, in memory that texts do not fill. Prints tables, and writes stats.json
and report.html, which works offline. Given the real MixInstruct, it says where its means differ from those published.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from data_pipeline.cleaning import LOG_SCALE_SCORES, MIXINSTRUCT_ALIASES, Rules, listed, remarks_on_candidates
from data_pipeline.cli import run_command
from data_pipeline.config import Lengths
from data_pipeline.errors import UserError
from data_pipeline.paths import absolute

if TYPE_CHECKING:
    from data_pipeline.shards import ShardSet
    from data_pipeline.statistics.rows import Reading
    from data_pipeline.statistics.tally import Tally

STATS, REPORT = "stats.json", "report.html"
# Which label stands for quality where none is named: the first of these that the split has, else its first.
_LABELS = ("bartscore", "bertscore", "rougeL", "cmp_results")


@dataclass(frozen=True)
class StatsConfig:
    """What to count, in which unit, and where to put it."""

    input: str | dict[str, str]
    """What `prepare` reads (file, glob, folder, URL, hf:owner/name, {split: one of these}), or a prepared set."""
    output: str
    """Folder for stats.json and report.html; it is created."""
    tokenizer: str = ""
    """A tokenizer folder or hub id to count tokens with; empty = a prepared set's own, else words are counted."""
    lengths: Lengths | None = None
    """The lengths at which texts are cut, to say how many are; none = a prepared set's own, else the usual ones."""
    split: str = ""
    """The split whose models and labels are shown; empty = test, else the first. stats.json has all."""
    label: str = ""
    """The label of the pie; empty = bartscore, bertscore, rougeL, or the first there is."""
    aliases: dict[str, str] = field(default_factory=lambda: dict(MIXINSTRUCT_ALIASES))
    """Model names to replace: name in the file → name to use."""
    log_scale_scores: list[str] = field(default_factory=lambda: list(LOG_SCALE_SCORES))
    """Scores on a log scale, of which an exact 0.0 means missing."""
    tolerance: float = 0.001
    """How far a mean of MixInstruct may be from the published one, as a share of it."""

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < 1:
            raise UserError(f"tolerance is {self.tolerance}; give a share of 0 or more and under 1.")


def main(config: StatsConfig) -> None:
    """Count what a set of rows holds: lengths, models, labels, duplicates; print tables, write JSON and a report."""
    from data_pipeline.commit import writing
    from data_pipeline.statistics.report import report_page
    from data_pipeline.statistics.tables import print_tables, tables

    told = collect(config)
    output = absolute(config.output)
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        (output / STATS).write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (output / REPORT).write_text(report_page(told), encoding="utf-8")
    print_tables(tables(told))
    print("\n".join([*told["remarks"], f"statistics: {output / STATS}", f"report: {output / REPORT}"]))


def collect(config: StatsConfig) -> dict[str, Any]:
    """Everything that stats.json holds. Raises `UserError` where there is no valid row, or no such split or label."""
    from data_pipeline.statistics.rows import Reading, describe, open_input
    from data_pipeline.statistics.tally import Tally
    from data_pipeline.survey import GENERATED_PREFIX

    reading = Reading()
    # Zeros of log-scale scores stay in, so that they can be counted by model.
    rows, shards = open_input(config.input, Rules(config.aliases, ()), reading)
    tokenizer, measure = _measure(config, shards)
    tally = Tally(measure, config.log_scale_scores)
    tally.add_all(rows)
    limits = _limits(config, shards) if tokenizer else None
    told: dict[str, Any] = describe(shards, config.input)
    told |= {"tokenizer": tokenizer, "unit": "tokens" if tokenizer else "words", **tally.document(limits)}
    told |= {"rejected": dict(sorted(reading.rejected.items())), "first_rejected": reading.first_rejected}
    told |= {"repairs": {name: dict(sorted(counts.items())) for name, counts in vars(reading.repairs).items()}}
    told["generated"] = GENERATED_PREFIX.rstrip("/") in tally.sources
    told |= _chosen(config, tally)
    told |= _published(config, told)
    return told | {"remarks": _remarks(told, reading)}


def _measure(config: StatsConfig, shards: ShardSet | None) -> tuple[str, Callable[[Sequence[str]], list[int]]]:
    """The tokenizer's name ("" where words are counted), and what measures texts."""
    if not config.tokenizer and shards is None:
        return "", lambda texts: [len(text.split()) for text in texts]
    from data_pipeline.encoding import Encoder
    from data_pipeline.tokenization import load_tokenizer

    if config.tokenizer or shards is None:
        name, tokenizer = config.tokenizer, load_tokenizer(config.tokenizer)
    else:
        name, tokenizer = str(shards.manifest["tokenizer"]["name"]), shards.tokenizer()
    encoder, whole = Encoder.of(tokenizer), 1 << 30
    return name, lambda texts: encoder.encode(texts, whole).lengths.tolist()


def _limits(config: StatsConfig, shards: ShardSet | None) -> dict[str, int]:
    """By kind, how many tokens of the text are kept: of the reference one less, for the end of the sequence."""
    lengths = config.lengths or (shards.lengths if shards else Lengths())
    return {"question": lengths.question, "candidate": lengths.response, "reference": lengths.target - 1}


def _chosen(config: StatsConfig, tally: Tally) -> dict[str, str]:
    """The split and the label that are shown; label "" where there is none. Raises `UserError` for a wrong name."""
    splits = list(tally.splits)
    split = config.split or ("test" if "test" in splits else splits[0])
    if split not in splits:
        raise UserError(f"There is no split {split}; there is {', '.join(splits)}.")
    labels = sorted(tally.splits[split].scores.cells)
    if config.label and config.label not in labels:
        raise UserError(
            f"No row of split {split} has the label {config.label}; there is {', '.join(labels) or 'none'}."
        )
    usual = next((label for label in _LABELS if label in labels), labels[0] if labels else "")
    return {"shown_split": split, "shown_label": config.label or usual}


def _published(config: StatsConfig, told: Mapping[str, Any]) -> dict[str, Any]:
    """The comparison with MixInstruct's card, where the set is MixInstruct."""
    from data_pipeline.statistics.published import compare_with_card, is_mixinstruct, verdict

    if not is_mixinstruct(config.input, told):
        return {}
    compared = compare_with_card(told, config.tolerance)
    return {"published": compared | {"verdict": verdict(compared)}}


def _remarks(told: Mapping[str, Any], reading: Reading) -> list[str]:
    """What a reader should know before the tables."""
    remarks = []
    if told["rejected"]:
        remarks.append(
            f"rejected rows: {listed(told['rejected'])}"
            + (f"; {reading.first_rejected}" if reading.first_rejected else "")
        )
    for split, by_later in told["duplicates"]["leaks"].items():
        remarks += [f"leak: {count:,} rows of {split} have a prompt of {later}" for later, count in by_later.items()]
    if told["duplicates"]["ids"]:
        remarks.append(f"ids that came before: {told['duplicates']['ids']:,} (preparing keeps one row of each)")
    zeros = _zeros(told)
    if zeros:
        remarks.append(f"exact zeros of log-scale scores, taken as missing: {zeros}")
    aliased = listed(told["repairs"]["aliased"])
    remarks += [f"renamed models: {aliased}"] if aliased else []
    remarks += remarks_on_candidates(told["repairs"]["unusable_scores"], told["repairs"]["repeated_models"])
    odd = listed(told["repairs"]["characters"]).replace("_", " ")
    remarks += [f"texts with odd characters: {odd}"] if odd else []
    return remarks + ([f"published card: {told['published']['verdict']}"] if "published" in told else [])


def _zeros(told: Mapping[str, Any]) -> str:
    """By label, the zeros found in the rows, or those that preparing found."""
    counts: dict[str, int] = dict(told["repairs"]["zero_scores"])
    for split in told["splits"].values():
        for label, entry in split["labels"].items():
            counts[label] = counts.get(label, 0) + entry["zeros_taken_as_missing"]
    return listed({label: count for label, count in sorted(counts.items()) if count})


if __name__ == "__main__":
    run_command(main, StatsConfig)
