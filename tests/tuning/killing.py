"""Kill a sweep at random moments and let the same command go on, as whoever pulls the plug does.

Also a command, for a sweep of its own choice; it takes `tuning.sweep`'s options, and says whether Optuna, the outcome
files, Tune and MLflow tell the same at the end:
    python -m tests.tuning.killing --config sample --name killed
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.tuning.accounts import disagreements
from tuning.cost import cost

KILLS = 2
ENDS = 3
"""Trials that end in each session before it is killed."""
MOMENTS = 10.0
"""Seconds after the last of them within which the kill comes."""


def run_killed(command: Sequence[str], folder: Path, dice: random.Random, environment: Mapping[str, str]) -> None:
    """Start a sweep KILLS times, each time killing its whole process group with SIGKILL. folder: the sweep's."""
    for _ in range(KILLS):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
        ended = _ended(folder)
        while _ended(folder) < ended + ENDS:
            assert process.poll() is None, "the sweep ended before it was killed"
            time.sleep(0.1)
        time.sleep(dice.uniform(0, MOMENTS))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _ended(folder: Path) -> int:
    return len(list(folder.glob("trials/*/outcome.json")))


def main(options: Sequence[str]) -> int:
    """Kill the sweep that the options describe, let it go on to its end, and compare the accounts; the exit code."""
    from data_pipeline.cli import parse_config
    from tuning.blueprint import draw_up
    from tuning.config import PRESETS, SweepConfig
    from urg.tracking import default_uri

    config = parse_config(SweepConfig, presets=PRESETS, argv=options)
    storage = Path(config.storage).absolute()
    command = [sys.executable, "-m", "tuning.sweep", *options]
    run_killed(command, storage / config.name, random.Random(config.seed), os.environ)
    print(f"killed {KILLS} times, {_ended(storage / config.name)} trials had ended; once more:", flush=True)
    code = subprocess.run(command).returncode
    blueprint = draw_up(config)
    told = disagreements(blueprint.folder, default_uri(storage), blueprint.experiment, blueprint.trials)
    print("\n".join(told) or f"all accounts agree; {cost(storage / config.name)}")
    return code or bool(told)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
