"""A dataset repository of the Hugging Face hub as a local folder: downloaded, or what the client's cache has of it."""

from __future__ import annotations

from pathlib import Path

from data_pipeline.errors import UserError, first_line
from data_pipeline.folders import split_named
from data_pipeline.formats import FORMATS, is_data_file


def hub_snapshot(repository: str, revision: str) -> Path:
    """The local folder of a dataset repository at a revision; its name is the commit.

    From the hub where it can be reached, else from the cache. Raises `UserError` where neither has it, and for a cache
    that has later splits but not the train split.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    from huggingface_hub.utils import disable_progress_bars

    from data_pipeline.tokenization import hub_problem, require_hub

    disable_progress_bars()
    patterns = [f"*{ending}" for each in FORMATS for ending in each.endings] + ["*dataset_dict.json", "*state.json"]
    problem = hub_problem()
    if not problem:
        print(f"fetching {repository} at {revision} from the hub, what is not cached of it", flush=True)
    try:
        snapshot = Path(
            snapshot_download(
                repository,
                repo_type="dataset",
                revision=revision,
                allow_patterns=patterns,
                local_files_only=problem is not None,
            )
        )
    except LocalEntryNotFoundError as error:
        require_hub(f"the dataset {repository} at revision {revision}")
        raise UserError(f"The hub does not give {repository} ({first_line(error)}); check name and access.") from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(
            f"The hub has no dataset {repository} at revision {revision} that can be read ({first_line(error)}); "
            "check the name, or log in."
        ) from error
    if problem:
        _require_train(repository, snapshot, problem)
    return snapshot


def _require_train(repository: str, snapshot: Path, problem: str) -> None:
    """Raise `UserError` for a cache with files of later splits and none of the train split: they would be taken for one
    body of rows, and be split anew."""
    cached = sorted(path.relative_to(snapshot) for path in snapshot.rglob("*") if is_data_file(path.name))
    splits = {split_named(part) for path in cached for part in path.parts} - {None}
    if splits and "train" not in splits:
        raise UserError(
            f"Of hf:{repository} only {', '.join(map(str, cached))} is cached, without a train split, and the hub "
            f"cannot be asked for the rest ({problem}); connect once to fetch it, or name these files themselves."
        )
