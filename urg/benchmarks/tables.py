"""A benchmark's result for people: tables of every measurement, Tables 4 and 7 beside what the paper printed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from urg.benchmarks.config import SAME_ENCODER
from urg.benchmarks.ratios import NOT_RUN
from urg.evaluation.paper_tables import published, published_urg
from urg.evaluation.sheet import NONE, Group, Line, Sheet

_PUBLISHED = {
    "simcls": "SimCLS",
    "summareranker": "SummaReranker",
    "pair_ranker_full": "PairRanker",
    "pair_ranker_bubble": "PairRanker",
}

_MEASURED = (("seconds", 1), ("flops", 1e12))


def sheets(result: dict[str, Any]) -> list[Sheet]:
    """A table for each experiment that was run, and the ratios last."""
    made = [_MADE[name](result[name], result) for name in _MADE if name in result]
    return [sheet for part in made for sheet in part] + [_ratios(result)]


def _rank(part: dict[str, Any], result: dict[str, Any]) -> list[Sheet]:
    lines = []
    for run in part["runs"]:
        for name, own in run["systems"].items():
            speed = (f"{own['seconds']:.2f}", f"{own['spread']:.0%}", f"{own['rows_per_s']:.2f}")
            lines.append(Line((name, str(run["batch"]), str(run["tokens"]), *speed, f"{own['peak_share']:.0%}")))
    peaks = [
        f"{run['batch']} rows, peak of a product before → after, GFLOP/s: "
        + ", ".join(f"{dtype} {a:.0f} → {b:.0f}" for dtype, (a, b) in run["peak_gflops"].items())
        for run in part["runs"]
    ]
    head = ("variant", "rows", "tokens", "seconds", "spread", "rows/s", "share of the peak")
    equal = "Scores beside the obvious code's in fp32, largest relative difference, rows in the same order: "
    equal += ", ".join(
        f"{name} {own['largest_relative_difference']:.1e}, {own['rows_in_the_same_order']} of {own['rows']}"
        for name, own in part["same_ranking"].items()
        if name != "obvious_fp32"
    )
    steps = "The one decoder step's share of the time: "
    steps += ", ".join(
        f"{dtype} {own['share']:.1%} (spread {own['spread']:.0%})" for dtype, own in part["rank_step"].items()
    )
    shape = result["config"]["rank_shape"]
    return [_sheet(f"Ranking, {shape}", head, lines, *peaks, equal, steps), _first(part["first"], shape)]


def _first(part: dict[str, Any], shape: str) -> Sheet:
    """Seconds until a process has ranked one row, and memory."""
    sizes = list(next(iter(part.values()))["peak_bytes"])
    lines = []
    for name, own in part.items():
        seconds = [own[f"{what}_seconds"] for what in ("import", "model", "first")]
        held = [own["model_bytes"], own["held_bytes"], *(own["peak_bytes"].get(size) for size in sizes)]
        cells = [f"{value:.1f}" for value in (*seconds, sum(seconds))]
        lines.append(Line((name, *cells, *(NONE if value is None else f"{value / 2**20:.0f}" for value in held))))
    head = ("variant", "imports", "model", "ready, one row", "in all", "model made", "row ranked")
    peaks = tuple(f"peak, {size} rows" for size in sizes)
    spans = (("", 1), ("seconds", 4), ("MiB held", 2), ("MiB beyond it", len(peaks)))
    notes = ("Each variant in a process of its own. The model's random weights are drawn, not read.",)
    title = f"From the start of a process to its first ranking, and memory, {shape}"
    return Sheet(title, (*head, *peaks), (Group("", tuple(lines)),), spans, notes)


def _rankers(part: dict[str, Any], result: dict[str, Any]) -> list[Sheet]:
    """Raw rows/s first, Norm(size) as the paper has it beside it; without published figures what it has not."""
    made = []
    for batch, runs in part["batches"].items():
        groups: dict[str, list[Line]] = {}
        for (dtype, systems), ours in itertools.product(runs.items(), (True, False)):
            group = f"{dtype}, encoder: {'URG' if ours else part['encoder']}"
            groups[group] = [_ranker(name, own, batch) for name, own in systems.items() if _is_on_ours(name) == ours]
        head = ("ranker", "size", "rows", "tokens a row", "rows/s", "spread", "Norm(size)")
        title = f"Tables 4 and 7: ranking at a batch of {batch}, random weights"
        spans = (("", 1), ("ours", 6), ("published, 8 A100", 4))
        notes = (
            "Norm(size): parameters in billions × rows/s. rows: those that were timed; where they are fewer than the "
            "batch, rows/s are the batch's by the tokens of all of its pairs.",
            "On a CPU the first batch size alone is timed: the cost is that of the rows.",
            published()["urg"]["slips"][4],
        )
        shown = tuple(Group(name, tuple(lines)) for name, lines in groups.items() if lines)
        made.append(Sheet(title, (*head, "as", "size", "rows/s", "Norm(size)"), shown, spans, notes))
    return made


def _ranker(name: str, own: dict[str, Any], batch: str) -> Line:
    cells = [f"{own['parameters'] / 1e6:.0f}M", str(own["rows"]), f"{own['tokens_per_row']:.0f}"]
    cells += [f"{own['rows_per_s']:.3f}", f"{own['spread']:.0%}", f"{own['norm']:.3f}"]
    table = published()["urg"]["table7"]
    printed = {row["name"]: row["values"] for row in table["rows"]}
    of_its_size = published_urg(own["parameters"]) if name == "urg" else None
    as_printed = of_its_size["name"] if of_its_size else _PUBLISHED.get(name)
    theirs = dict(zip(table["columns"], printed[as_printed], strict=True)) if as_printed else {}
    beside = (theirs.get(key, NONE) for key in ("size", f"b{batch}", f"norm_b{batch}"))
    return Line((name.removesuffix(SAME_ENCODER), *cells, as_printed or NONE, *map(str, beside)))


def _is_on_ours(name: str) -> bool:
    return name == "urg" or name.endswith(SAME_ENCODER)


def _fuse(part: dict[str, Any], result: dict[str, Any]) -> list[Sheet]:
    note = "ours: from the states that ranking made. ours_whole: encoding and ranking too. fid: K encoded again."
    made = []
    for name, run in part["runs"].items():
        title = f"Fusing {part['rows']} rows, {name.replace('_', ' ')}, {part['new_tokens']} tokens"
        share = run.get("fid_writes_the_same")
        same = [] if share is None else [f"fid writes {share:.1%} of its tokens as ours does."]
        made.append(_seconds(f"{title}, {result['config']['rank_shape']}", run, note, *same))
    return made


def _train(part: dict[str, Any], result: dict[str, Any]) -> list[Sheet]:
    peaks = {name: f"{own['peak'] / 2**20:.0f} MiB" for name, own in part["bytes"].items()}
    held, gradients = (part["bytes"]["ours"][name] / 2**20 for name in ("held", "gradients"))
    note = (
        f"Peak memory is the step's, {gradients:.0f} MiB of it gradients. Before it the process of ours "
        f"held {held:.0f} MiB (imports, models, batch)."
    )
    equal = "All gradients beside ours, relative difference: "
    equal += ", ".join(f"{name} {value:.1e}" for name, value in part["gradient_difference"].items())
    title = f"Training step, {part['rows']} rows, {result['config']['train_shape']}, fp32"
    return [_seconds(title, part, note, equal, peaks=peaks)]


def _seconds(title: str, part: dict[str, Any], *notes: str, peaks: dict[str, str] | None = None) -> Sheet:
    rows = part["seconds"].items()
    lines = [
        Line((name, f"{value:.3f}", f"{part['spread'][name]:.0%}", *([peaks[name]] if peaks else [])))
        for name, value in rows
    ]
    return _sheet(title, ("variant", "seconds", "spread", *(["peak memory"] if peaks else [])), lines, *notes)


def _stack(part: dict[str, Any], result: dict[str, Any]) -> list[Sheet]:
    def line(name: str, what: str, of: str) -> Line:
        return Line(
            (name, *(f"{part[f'{key}_seconds']:.4f}" for key in (what, of)), f"{part['spread'][f'{what}_seconds']:.0%}")
        )

    head = ("loop", "seconds", "processor's seconds", "spread")
    lines = [line("urg.train, one worker", "stack", "worker_processor"), line("bare loop", "bare", "bare_processor")]
    note = "Wall clock, a checkpoint and logging included. Beside the worker the other processes, most of them Ray's, "
    note += f"use {part['other_processor_seconds']:.4f} s of the processor a step."
    return [_sheet(f"Seconds a step over {part['steps']} steps", head, lines, note)]


def _complexity(part: dict[str, Any], result: dict[str, Any]) -> list[Sheet]:
    systems = ("", "pair_ranker_full_")
    lines = []
    for n in part["seconds_by_n"]:
        cells = [f"{part[f'{own}{what}_by_n'][n] / unit:.3f}" for own in systems for what, unit in _MEASURED]
        lines.append(Line((f"N = {n}", *cells, f"{part['spread_by_n'][n]:.0%}")))
    counted = part["analytic_n_exponent"]
    fitted = [part["n_exponent"], counted["urg"], part["pair_ranker_full_n_exponent"], counted["pair_ranker_full"]]
    lines.append(Line(("fitted exponent", *(f"{value:.2f}" for value in fitted), NONE)))
    told = "Exponents of the encoder's operations at the set's mean lengths: "
    told += ", ".join(f"{name} {value:.2f}" for name, value in counted.items())
    head = ["candidates", "urg: s", "urg: TFLOP", "pair_ranker_full, one row: s", "TFLOP", "spread of urg"]
    made = [_sheet("Ranking time by the number of candidates", head, lines, f"{told}.")]
    lines = []
    for length in part["seconds_by_length"]:
        cells = [f"{part[f'{what}_by_length'][length] / unit:.3f}" for what, unit in _MEASURED]
        lines.append(Line((f"L = {length}", *cells, f"{part['spread_by_length'][length]:.0%}")))
    fitted = [part["length_exponent"], part["analytic_length_exponent"]]
    lines.append(Line(("fitted exponent", *(f"{value:.2f}" for value in fitted), NONE)))
    head = ["mean tokens of a candidate", "urg: s", "urg: TFLOP", "spread"]
    return [*made, _sheet("Ranking time by the length of the candidates, N = 12", head, lines)]


def _profile(part: dict[str, Any], result: dict[str, Any]) -> list[Sheet]:
    return [
        _sheet(
            f"Where the time goes: {name}",
            ("operator", "calls", "seconds", "share"),
            [
                Line((own["operator"], str(own["calls"]), f"{own['seconds']:.3f}", f"{own['share']:.1%}"))
                for own in operators
            ],
            "Each operator without those that it calls. Dearer under the profiler, many small ones most of all.",
        )
        for name, operators in part.items()
    ]


def _faults(part: dict[str, Any], result: dict[str, Any]) -> list[Sheet]:
    lines = [Line((name, f"{value:.4f}", f"{part['spread'][name]:.0%}")) for name, value in part["seconds"].items()]
    lines += [Line((f"outage: {when.split('_')[0]}", f"{value:.4f}", NONE)) for when, value in part["outage"].items()]
    told = f"Checkpoints and tracking: {part['overhead']:+.1%} a step, with a checkpoint in {part['steps']} steps"
    told += f" ({part['checkpoint_seconds']:.2f} s each). Two runs at once that share nothing but the machine scale by "
    told += f"{part['scaling_of_machine']:.2f}, two workers of one run by {part['weak_scaling']:.2f}."
    made = [_sheet("Median seconds a step, 16 rows a worker", ("run", "seconds", "spread"), lines, told)]
    stages = [Line((name.replace("_", " "), f"{value:.1f}")) for name, value in part["recovery"].items()]
    return [*made, _sheet("After SIGKILL of one of two workers", ("stage", "seconds since"), stages)]


def _ratios(result: dict[str, Any]) -> Sheet:
    lines = [Line((name, f"{value:.3f}")) for name, value in result["ratios"].items()]
    missing = result["missing"]
    lines += [Line((name, f"missing: {reason}")) for name, reason in missing.items() if reason != NOT_RUN]
    notes = ["--quick: small shapes and few rows; a first answer, no result."] if result["config"]["quick"] else []
    if left_out := sum(reason == NOT_RUN for reason in missing.values()):
        notes.append(f"{left_out} more ratios are of experiments that were not run (--experiment).")
    if result["config"].get("repeats") == 1:
        notes.append("One repeat: a spread of 0% says nothing.")
    if machine := result.get("machine"):
        told = f"Commit {result['commit']}; {machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, "
        notes.append(
            f"{told}{machine['device']}, torch {machine['torch']}, load {machine['load']:.1f} at the beginning."
        )
        if machine["load"] > 1:
            notes.append("The machine had other work: measure again on a quiet one before you believe a ratio.")
    return _sheet("Ratios (above 1 ours is faster; shares and exponents as named)", ("ratio", "value"), lines, *notes)


def _sheet(title: str, head: Sequence[str], lines: Sequence[Line], *notes: str) -> Sheet:
    return Sheet(title, tuple(head), (Group("", tuple(lines)),), notes=notes)


_MADE = {
    "rank": _rank,
    "rankers": _rankers,
    "fuse": _fuse,
    "train": _train,
    "stack": _stack,
    "complexity": _complexity,
    "profile": _profile,
    "faults": _faults,
}
