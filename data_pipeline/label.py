"""Labels for every candidate: `python -m data_pipeline.label --input ROWS --output FOLDER --metrics bertscore,bleu`.

Every line is checked first; bad rows go to the quarantine. Then each metric that needs a model takes the rows, shard by
shard, through a pool of actors which hold that model; scores that a row has already are kept. The judge's questions go
out from here. At the end the scores are put into the rows, and the set appears in one step, its manifest written last.

What is finished when a run is killed stays beside the output and is found by the same command run again. On several
nodes, input, output and model folders must be on storage that all of them share at the same path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from data_pipeline.cli import run_command
from data_pipeline.labelling.config import LabelConfig

if TYPE_CHECKING:
    from pathlib import Path


def main(config: LabelConfig) -> None:
    """Label candidates: scores by metric models on actor pools, comparisons by a judge; rows that prepare reads."""
    label(config)


def label(config: LabelConfig) -> Path:
    """Make the labelled set that `config` describes, or find it already there; its folder. Prints what it does.

    Raises `UserError` for input without a valid row, a model or an endpoint that does not work, an output in use.
    """
    from data_pipeline.commit import locked, writing
    from data_pipeline.labelling.job import find_job, is_done, sweep
    from data_pipeline.labelling.stages import build

    with locked(config.work, "labels rows"), writing(config.folder):
        try:
            job = find_job(config)
            if is_done(job):
                print(f"nothing to do: {config.folder} already holds these rows with these labels")
            else:
                build(job)
        finally:
            sweep(config)
    return config.folder


if __name__ == "__main__":
    run_command(main, LabelConfig)
