"""A step is one command of the project in a process of its own; it is done when its marker says so.

The commands are what a user would type, and each goes on by itself where it was killed. A marker, written last, holds
the command, its time, and the commit and the data that it was run with: the same step is never run twice. Of another
command under the same name, what only measures is run again, and all else refused: models are not mixed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError, first_line
from data_pipeline.ray_session import on_cluster
from tuning.reproduction.processes import held, run_here, run_where_a_gpu_is, session
from urg.code_version import git_commit

MEASURES = ("urg.evaluate", "urg.benchmark", "data_pipeline.stats")
"""Commands that nothing else is made of: where one has changed, it is run again."""
DataKey = Callable[[], str | None]


@dataclass(frozen=True)
class Step:
    """One command, and the steps that must be done before it."""

    name: str
    """Its name, and its marker's and log's."""
    command: tuple[str, ...]
    """What follows `python -m`."""
    needs: tuple[str, ...] = ()
    """Names of other steps."""
    alone: bool = False
    """Whether nothing may run beside it: it measures time, or fills the machine by itself."""
    gpu: bool = False
    """Whether it runs on a node of the cluster with a GPU, and holds it; without a cluster it runs here."""
    after: tuple[str, ...] = ()
    """Names of steps that go first where they are run too, for this one takes up what they have kept."""


@dataclass(frozen=True)
class Ending:
    """How a step ended: what it took, or why it failed."""

    seconds: float = 0.0
    failure: str | None = None
    began: float = 0.0
    """When, in seconds since the epoch; 0 where it did not run."""
    commit: str | None = None
    """Of the code that ran it; None where a marker of before does not say."""
    data: str | None = None
    """Key of the prepared set that it took; None as above, and for a step without data."""


def options(values: Mapping[str, Any]) -> list[str]:
    """Dotted keys as arguments of a command: {"loss.beta": 0} → ["--loss.beta", "0"]."""
    arguments = []
    for key, value in values.items():
        arguments += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    return arguments


def marker(root: Path, step: str) -> Path:
    """The file that says that a step is done."""
    return root / "steps" / f"{step}.json"


def markers(root: Path) -> list[Path]:
    """The files that say so of every step that is done."""
    return sorted((root / "steps").glob("*.json"))


def ending_of(root: Path, step: Step) -> Ending | None:
    """How a step ended that has been done; None where it has not, or what it measures has changed. Raises UserError
    where its marker is of another command that made something."""
    path = marker(root, step.name)
    if not path.exists():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    stored = content["command"]
    if stored != list(step.command) and step.command[0] in MEASURES:
        return None
    if stored != list(step.command):
        old, new = (" ".join(argument for argument in side if argument not in other) for side, other in
                    ((stored, step.command), (step.command, stored)))  # fmt: skip
        raise UserError(
            f"{root} holds another reproduction: its step {step.name} was run with {old or 'other options'} and not "
            f"with {new or 'these'}. Choose another --name."
        )
    # Markers of before do not say when; each is written as its step ends.
    began = content.get("began", path.stat().st_mtime - content["seconds"])
    return Ending(content["seconds"], began=began, commit=content.get("commit"), data=content.get("data"))


def with_needs(steps: Mapping[str, Step], wanted: Sequence[str]) -> dict[str, Step]:
    """These of the steps and all that they need, in the order of `steps`."""
    found: set[str] = set()
    left = list(wanted)
    while left:
        name = left.pop()
        left += [need for need in steps[name].needs if need not in found]
        found.add(name)
    return {name: step for name, step in steps.items() if name in found}


def run_steps(
    root: Path, steps: Mapping[str, Step], at_once: int, data_key: DataKey = lambda: None
) -> dict[str, Ending]:
    """Run what is not done yet, each step after those it needs, `at_once` side by side; how each of them ended.

    A step fails where its command does, or where one that it needs failed; the others go on. data_key: of the set that
    the steps take, asked at the end of each.
    """
    endings = {name: ending for name, step in steps.items() if (ending := ending_of(root, step)) is not None}
    running: dict[Future[Ending], str] = {}
    far = any(step.gpu for name, step in steps.items() if name not in endings)
    with ThreadPoolExecutor(at_once) as pool, session(far):  # Ray goes first: threads that wait for it end
        while len(endings) < len(steps):
            for step in _ready(steps, endings, running.values()):
                failed = next((name for name in step.needs if endings[name].failure), None)
                if failed:
                    endings[step.name] = Ending(failure=f"{failed} failed")
                elif _fits(step, [steps[name] for name in running.values()], at_once):
                    place = f"[{len(endings) + len(running) + 1}/{len(steps)}]"
                    job = pool.submit(_run, root, step, place, _environment(step, at_once), data_key)
                    running[job] = step.name
            done, _ = wait(running, return_when=FIRST_COMPLETED) if running else ((), None)
            for future in done:
                endings[running.pop(future)] = _ended(future)
    return endings


def _ended(future: Future[Ending]) -> Ending:
    """How a step ended, also where it could not be begun, or its node was lost too often."""
    try:
        return future.result()
    except Exception as error:
        return Ending(failure=f"{type(error).__name__}: {first_line(error)}")


def _ready(steps: Mapping[str, Step], endings: Mapping[str, Ending], running: Sequence[str] | Any) -> Iterator[Step]:
    """Steps that have not begun, and whose needs have ended."""
    for name, step in steps.items():
        before = (*step.needs, *(name for name in step.after if name in steps))
        if name not in endings and name not in set(running) and all(need in endings for need in before):
            yield step


def _fits(step: Step, running: Sequence[Step], at_once: int) -> bool:
    """Whether a step may begin beside those that run."""
    return not running or (len(running) < at_once and not any(each.alone for each in (step, *running)))


def _environment(step: Step, at_once: int) -> dict[str, str]:
    """A step's environment: beside others it takes its share of this machine's threads, unless the user says more."""
    if step.alone or at_once == 1:
        return dict(os.environ)
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"OMP_NUM_THREADS": str(max(1, cpus // at_once))} | os.environ


def _run(root: Path, step: Step, place: str, environment: dict[str, str], data_key: DataKey) -> Ending:
    """Run one step; it fails where its log or its marker cannot be written, too."""
    try:
        return _logged(root, step, place, environment, data_key)
    except OSError as error:
        print(f"{place} {step.name}: failed, {error}", flush=True)
        return Ending(failure=str(error))


def _logged(root: Path, step: Step, place: str, environment: dict[str, str], data_key: DataKey) -> Ending:
    """Run one step; its output goes to a log."""
    log = root / "logs" / f"{step.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{place} {step.name}: python -m {' '.join(step.command)}", flush=True)
    run = run_where_a_gpu_is if step.gpu and on_cluster() else run_here
    with held(root, step.name) as lock:
        began, started, commit = time.time(), time.monotonic(), git_commit()
        code = run(step.command, log, environment, lock)
    seconds = round(time.monotonic() - started, 1)
    if code:
        reason = _last_line(log) or f"exit code {code}"
        print(f"{place} {step.name}: failed, {reason} (log: {log})", flush=True)
        return Ending(seconds, f"{reason} (log: {log})", began)
    ending = Ending(
        seconds, began=began, commit=commit, data=None if step.command[0] == "urg.benchmark" else data_key()
    )
    told = {"began": began, "seconds": seconds, "commit": ending.commit, "data": ending.data}
    _write_marker(marker(root, step.name), {"command": list(step.command)} | told)
    print(f"{place} {step.name}: done in {seconds:.0f} s", flush=True)
    return ending


def _write_marker(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_suffix(".tmp")
    staged.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    staged.replace(path)


def _last_line(log: Path) -> str:
    """The last line of a log that says something, shortened."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
