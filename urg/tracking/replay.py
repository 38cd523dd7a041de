"""Send to MLflow what runs logged while it was away: python -m urg.tracking.replay --spool RUN_FOLDER/mlflow-spool
--uri URI."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import UserError
from urg.tracking.journal import Journal, RunCard, read_cards


@dataclass(frozen=True)
class ReplayConfig:
    """What to send, and where to."""

    spool: Path
    """The folder `mlflow-spool` of a run."""
    uri: str = ""
    """MLflow's uri. Empty: the environment variable MLFLOW_TRACKING_URI, which keeps a login out of `ps`."""


def replay(config: ReplayConfig) -> None:
    """Send to MLflow what earlier processes logged while it was away; may be repeated, every point arrives once.

    Files of processes that are still running are left to them. Raises UserError where the server does not answer.
    """
    uri, spool = config.uri or os.environ.get("MLFLOW_TRACKING_URI", ""), config.spool.expanduser().resolve()
    if not uri:
        raise UserError("No MLflow server is named: give --uri, or set MLFLOW_TRACKING_URI.")
    cards = read_cards(spool)
    if not cards:
        raise UserError(f"{spool} holds nothing that was logged: give the folder `mlflow-spool` of a run.")
    for card in cards:
        _replay_run(uri, spool, card)


def _replay_run(uri: str, spool: Path, card: RunCard) -> None:
    from urg.tracking import absolute_uri
    from urg.tracking.delivery import drain
    from urg.tracking.mlflow_run import MlflowRun

    journal, run = Journal(spool, card.key), MlflowRun(absolute_uri(uri, spool), card, spool)
    try:
        if journal.pending:
            run.connect()
            drain(journal, run)
            run.retry_failed()
            print(f"sent: {card.run_name} ({run.run_id})")
    except Exception as error:
        why = run.explain(error)
        raise UserError(f"{run.name} does not answer ({why}): nothing is lost, try again later.") from None
    finally:
        if run.failed():
            journal.append(run.failed())
        journal.close()


if __name__ == "__main__":
    from data_pipeline.cli import run_command

    run_command(replay, ReplayConfig)
