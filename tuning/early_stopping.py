"""What ending trials early saves: `python -m tuning.early_stopping --config sample` runs one sweep twice, under ASHA
and with every trial to its end, and gives the ratio of what they took.

Both try the same points: drawn at random or from a grid, for a searcher that learns would draw others where it saw
others. They are sweeps like any other, `<name>-asha` and `<name>-whole`, and go on where they were killed. Beside them
in `<storage>/` it leaves <name>-early-stopping.json and .md.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from data_pipeline.cli import run_command
from data_pipeline.errors import UserError
from tuning.config import PRESETS, SweepConfig

if TYPE_CHECKING:
    from tuning.cost import Cost
    from urg.evaluation.sheet import Sheet

_KINDS: tuple[Literal["asha", "none"], ...] = ("asha", "none")


def main(config: SweepConfig) -> None:
    """Run a sweep of random points under ASHA and with every trial to its end, and compare what they took."""
    from urg.evaluation.sheet import plain

    if config.dry_run:
        from tuning.estimate import describe

        print("\n\n".join(describe(each) for each in twins(config)))
        return
    print(plain(measure(config)))


def twins(config: SweepConfig) -> tuple[SweepConfig, SweepConfig]:
    """The sweep under ASHA, and the one with every trial to its end; no other difference. Raises UserError for what
    ASHA cannot do."""
    if config.folds is not None or len(config.objective) > 1:
        raise UserError("ASHA ends trials by one objective and without folds: give one --objective, and --folds null.")
    searcher: Literal["grid", "random"] = "grid" if config.searcher == "grid" else "random"
    early, never = (dataclasses.replace(config.scheduler, kind=kind) for kind in _KINDS)
    asha = dataclasses.replace(config, name=f"{config.name}-asha", searcher=searcher, scheduler=early)
    return asha, dataclasses.replace(asha, name=f"{config.name}-whole", scheduler=never)


def measure(config: SweepConfig) -> Sheet:
    """Run or resume both sweeps, and write and return the comparison. Raises UserError where the trials differ, as a
    budget of hours makes them."""
    from tuning.cost import cost, points
    from tuning.sweep import sweep
    from urg.evaluation.results import write_json, write_text
    from urg.evaluation.sheet import markdown

    folders = [sweep(each) for each in twins(config)]
    if points(folders[0]) != points(folders[1]):
        raise UserError(f"{folders[0]} and {folders[1]} have not tried the same points: give --trials without --hours.")
    asha, whole = map(cost, folders)
    found = ratios(asha, whole)
    sheet = table(asha, whole, found, fate(folders[0], whole))
    beside = Path(config.storage).expanduser().absolute() / f"{config.name}-early-stopping"
    document = {"ratios": found, "asha": dataclasses.asdict(asha), "whole": dataclasses.asdict(whole)}
    write_json(beside.with_name(f"{beside.name}.json"), document)
    write_text(beside.with_name(f"{beside.name}.md"), markdown(sheet))
    return sheet


def ratios(asha: Cost, whole: Cost) -> dict[str, float]:
    """ASHA's share of the steps, of the trials' seconds and of the sweep's. Raises UserError where nothing was
    trained."""
    pairs = {name: (getattr(asha, name), getattr(whole, name)) for name in ("steps", "trial_seconds", "seconds")}
    if not all(all(pair) for pair in pairs.values()):
        raise UserError("nothing was trained in one of the sweeps: see the reasons in its report.")
    return {name: own / other for name, (own, other) in pairs.items()}


def fate(asha: Path, whole: Cost) -> str:
    """Whether ASHA found what all trials together found: a sentence."""
    from tuning.blueprint import trial_name
    from tuning.cost import cost
    from tuning.ledger import read_outcome

    if whole.best is None or whole.value is None:
        return "No trial has finished."
    own, outcome = cost(asha), read_outcome(asha / "trials" / trial_name(whole.best))
    if own.best == whole.best and own.value == whole.value:
        return f"Equal best result: both find trial {whole.best}, {whole.value:.4f}."
    ended = f", {outcome.reason}" if outcome and outcome.reason else ""
    found = f"trial {own.best}, {own.value:.4f}" if own.value is not None else "none"
    return f"Not an equal result: ASHA finds {found}; best of all is trial {whole.best}, {whole.value:.4f}{ended}."


def table(asha: Cost, whole: Cost, found: dict[str, float], sentence: str) -> Sheet:
    """Both accounts and the ratios."""
    from urg.evaluation.sheet import NONE, Group, Line, Sheet

    def line(name: str, of: Cost) -> Line:
        early = of.states.get("PRUNED", 0)
        minutes = (f"{of.trial_seconds / 60:.1f}", f"{of.seconds / 60:.1f}")
        value = NONE if of.value is None else f"{of.value:.4f}"
        return Line((name, str(sum(of.states.values())), str(early), str(of.steps), *minutes, value))

    shares: tuple[Any, ...] = (*(f"{found[name]:.2f}" for name in ("steps", "trial_seconds", "seconds")), NONE)
    lines = (line("ASHA", asha), line("every trial to its end", whole), Line(("ratio", NONE, NONE, *shares)))
    head = ("sweep", "trials", "ended early", "steps", "minutes of trials", "minutes of the sweep", "best")
    return Sheet("What ending trials early saves", head, (Group("", lines),), notes=(sentence,))


if __name__ == "__main__":
    run_command(main, SweepConfig, presets=PRESETS)
