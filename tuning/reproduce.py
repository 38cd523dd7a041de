"""Run the paper's experiments: `python -m tuning.reproduce`, in miniature on a laptop, at full size on a cluster.

Every experiment is made of the project's own commands: what is trained by several is trained once, and the same command
again goes on where it stopped. In `<storage>/<name>/` it leaves
    report.html, .md, .json   every table beside what was published, and the verdict on each of the paper's claims
    steps/, logs/             which command has been done, with what commit and data, and what it printed
    data/, runs/, evaluations/, sweep/, benchmark/, stats/
`--only table3,fig3` runs a part, and the report shows whatever is done; `--dry-run` shows the steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.cli import run_command
from data_pipeline.errors import UserError
from tuning.reproduction.config import ReproduceConfig, load_preset

if TYPE_CHECKING:
    from tuning.reproduction.recipe import Recipe
    from tuning.reproduction.steps import Ending, Step


def main(config: ReproduceConfig) -> None:
    """Run the paper's experiments and write a report with published figures and the verdict on each claim."""
    recipe, needs = plan(config)
    if config.dry_run:
        print("\n".join(_steps_shown(recipe, needs)))
        return
    report, failed = reproduce(recipe, needs)
    print(f"report: {report}")
    print(f"next:   compare the runs in MLflow: make ui RUNS={recipe.root / 'runs'}")
    if failed:
        raise UserError(
            f"{len(failed)} of {len(wanted(recipe, needs))} steps failed, {failed[0]} first; the same command tries "
            "them again."
        )


def plan(config: ReproduceConfig) -> tuple[Recipe, dict[str, list[str]]]:
    """The recipe, and the steps of each experiment that is asked for, and of each other one that could be. Raises
    UserError for an unknown one, and where one that is asked for lacks data or a system."""
    from tuning.reproduction.data import pinned
    from tuning.reproduction.experiments import EXPERIMENTS
    from tuning.reproduction.recipe import Recipe

    strictly = asked(config.only)
    root = Path(config.storage).expanduser().absolute() / config.name
    recipe = Recipe(config, load_preset(config.preset), root, pinned(root, config.shards))
    needs: dict[str, list[str]] = {}
    for name, experiment in EXPERIMENTS.items():
        with nullcontext() if name in strictly else suppress(UserError):
            needs[name] = experiment.needs(recipe)
    return recipe, needs


def asked(only: str | None) -> list[str]:
    """The experiments that `--only` names, in the order of the report."""
    from tuning.reproduction.experiments import ALSO, EXPERIMENTS, ON_REQUEST

    if only is None:
        return [name for name in EXPERIMENTS if name not in ON_REQUEST]
    names = [name.strip() for name in only.split(",") if name.strip()]
    unknown = [name for name in names if name not in EXPERIMENTS and name not in ALSO]
    if unknown or not names:
        known = ", ".join([*EXPERIMENTS, *ALSO])
        raise UserError(f"only={only}: there is no experiment {', '.join(unknown)}; choose from {known}.")
    return [name for name in EXPERIMENTS if name in {ALSO.get(each, each) for each in names}]


def reproduce(recipe: Recipe, needs: dict[str, list[str]]) -> tuple[Path, list[str]]:
    """Run the steps of what is asked for that are not done yet, and write the report of all that are; its path, and the
    steps that failed. Raises UserError, and runs nothing, where the folder holds models of other commands."""
    from data_pipeline.commit import locked, writing
    from tuning.reproduction.data import data_key, pin
    from tuning.reproduction.report import write_report
    from tuning.reproduction.results import Results
    from tuning.reproduction.steps import run_steps

    with locked(recipe.root, busy="reproduces"):
        before = _done(recipe)
        with writing(recipe.root):
            pin(recipe.root, recipe.config.shards, recipe.pinned)
        # Speed is measured without data: they are looked for by the steps that take them.
        endings = run_steps(recipe.root, wanted(recipe, needs), recipe.at_once, lambda: data_key(recipe.shards()))
        with writing(recipe.root):
            report = write_report(Results(recipe, before | endings), needs, asked(recipe.config.only))
    return report, [name for name, ending in endings.items() if ending.failure]


def _done(recipe: Recipe) -> dict[str, Ending]:
    """How each step ended that is done, of whatever experiment."""
    from tuning.reproduction.steps import ending_of

    found = {name: ending_of(recipe.root, step) for name, step in recipe.steps.items()}
    return {name: ending for name, ending in found.items() if ending is not None}


def wanted(recipe: Recipe, needs: dict[str, list[str]]) -> dict[str, Step]:
    """The steps of the experiments that are asked for."""
    from tuning.reproduction.steps import with_needs

    return with_needs(recipe.steps, [step for name in asked(recipe.config.only) for step in needs[name]])


def _steps_shown(recipe: Recipe, needs: dict[str, list[str]]) -> Sequence[str]:
    from tuning.reproduction.steps import ending_of

    lines, done = [], 0
    for name, step in wanted(recipe, needs).items():
        ending = ending_of(recipe.root, step)
        done += ending is not None
        told = "to do" if ending is None else f"{ending.seconds:.0f} s"
        lines.append(f"{told:>6}  {name}: python -m {' '.join(step.command)}")
    return [*lines, f"{len(lines)} steps, {done} of them done, in {recipe.root}"]


if __name__ == "__main__":
    run_command(main, ReproduceConfig)
