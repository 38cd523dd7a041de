"""Candidates for your own prompts: `python -m data_pipeline.collect --models models.yaml --prompts prompts.jsonl`.

Every prompt is put to every model of the list: to OpenAI-compatible endpoints, all at once, and to local Hugging
Face models on Ray actors. An answer is journaled the moment it comes. So the same command again, after a kill at any
moment, goes on where it stopped, and asks again only for what is missing. Into the output folder come

    rows.jsonl                the prompts with their candidates, as `data_pipeline.prepare` reads them
    records/quarantine.jsonl  rejected prompts: file, line, reason, message, raw
    manifest.json             where it came from; input = kept + rejected; answered and missing by model and reason
    journal/                  every answer, by model; another prompt text, template or parameter is another question

A model that fails is left out of the rows that it failed for; nothing is put in its place. The list of models:

    - name: gpt                                 # an endpoint
      base_url: https://api.openai.com/v1
      model: gpt-4o-mini
      api_key_env: OPENAI_API_KEY               # where the key is; it is never written down
      parameters: {temperature: 0.7, max_tokens: 256}
      requests_per_minute: 500
    - name: flan-t5-xl                          # a Hugging Face model, here or on the Ray cluster of RAY_ADDRESS
      path: google/flan-t5-xl
      num_gpus: 0.5

On several nodes, the prompts and model folders must be on storage that all of them share at the same path.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path

from data_pipeline.cli import run_command
from data_pipeline.collection.config import CollectConfig, load_models
from data_pipeline.models import Endpoint, LocalModel, Model
from data_pipeline.paths import absolute


def main(config: CollectConfig) -> None:
    """Collect candidates: put every prompt to every model, endpoint or local, and write rows for `prepare`."""
    rows = collect(config)
    print(f"next: python -m data_pipeline.label --input {rows} --output data/labelled --metrics rouge (others: --help)")


def collect(config: CollectConfig) -> Path:
    """Ask what is yet to be asked and write the rows; their file.

    Raises `UserError` where models or prompts are not as they must be (before anything is asked), and where no model
    answered at all.
    """
    from data_pipeline.collection.results import ROWS
    from data_pipeline.commit import locked, staging

    models = ready_models(config)
    root = absolute(config.output)
    with locked(root, busy="collects candidates"), staging(root) as staged:
        _collect(models, absolute(config.prompts), root, staged)
    return root / ROWS


def ready_models(config: CollectConfig) -> list[Model]:
    """The models of the list, their keys and folders seen to be there."""
    from data_pipeline.collection.generation import resolve_path
    from data_pipeline.endpoint import api_key

    models = load_models(config.models)
    for model in models:
        if isinstance(model, Endpoint):
            api_key(model)
    return [resolve_path(model) if isinstance(model, LocalModel) else model for model in models]


def _collect(models: list[Model], path: Path, root: Path, staged: Path) -> None:
    """Survey, ask, write. staged: a folder that goes away at the end."""
    from data_pipeline.collection.asking import ask_endpoints, ask_local_models, open_journals
    from data_pipeline.collection.progress import Progress
    from data_pipeline.collection.prompts import survey_prompts
    from data_pipeline.collection.results import Quarantine, require_answers, summary, write_results

    quarantine = Quarantine(staged, path)
    with closing(quarantine), ExitStack() as stack:
        prompts = survey_prompts(path, quarantine.reject)
        asked = open_journals(models, prompts, root / "journal", stack)
        totals = {each.model.name: len(each.pending()) for each in asked}
        asked_of = f"{len(models)} model{'s' * (len(models) > 1)}"
        print(f"{len(prompts)} prompts for {asked_of}: {sum(totals.values())} answers to ask for", flush=True)
        with Progress(totals) as progress:
            ask_endpoints(asked, progress)
            ask_local_models(asked, progress)
        require_answers(asked)
        manifest = write_results(prompts, asked, quarantine, staged, root)
        print("\n".join(summary(manifest, asked, root)))


if __name__ == "__main__":
    run_command(main, CollectConfig)
