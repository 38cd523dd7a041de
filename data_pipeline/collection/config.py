"""What `data_pipeline.collect` is told, and the list of models that it names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.models import Endpoint, LocalModel, Model


@dataclass(frozen=True)
class CollectConfig:
    """Which prompts to put to which models, and where to put the rows."""

    models: str | list[dict[str, Any]]
    """The models, or a YAML file with the list of them. An OpenAI-compatible endpoint is written as
    - {name: gpt, base_url: "https://api.openai.com/v1", model: gpt-4o-mini, api_key_env: OPENAI_API_KEY}
    and may have system, template, parameters, requests_per_minute, concurrency, timeout_s, retries and give_up_after;
    a Hugging Face model as
    - {name: flan, path: google/flan-t5-large}
    and may have system, template, chat, max_prompt_tokens, max_new_tokens, parameters, seed, dtype, batch_size, actors,
    num_cpus and num_gpus."""
    prompts: str
    """JSON lines in MixInstruct's schema: {"id": "1", "instruction": "Who wrote Emma?", "output": "Jane Austen"}, with
    instruction and/or input, and output where there is a reference. Candidates that a row has already are kept, and
    their models not asked."""
    output: str = "data/collected"
    """Folder of the rows, the manifest, and the journal by which a run that was killed goes on."""


def load_models(models: str | Sequence[dict[str, Any]]) -> list[Model]:
    """The models that a configuration lists, or a YAML file does. Raises `UserError` where one is not as it must be."""
    entries = _entries(Path(models).expanduser()) if isinstance(models, str) else models
    if not entries:
        raise UserError("models is an empty list; give one model or more.")
    loaded = [_model(entry, index) for index, entry in enumerate(entries)]
    names = [model.name for model in loaded]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{names.count(name)} models have the name {name}; give each its own.")
    return loaded


def _entries(path: Path) -> list[Any]:
    """The list in a YAML file: all of it, or its `models`."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(f"The list of models {path} cannot be read ({reason}); give a YAML file.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)  # the message itself would quote the file, and what is in it
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise UserError(f"The list of models {path} is not YAML{place}; mend it there.") from None
    if isinstance(content, dict) and set(content) == {"models"}:
        content = content["models"]
    if not isinstance(content, list):
        raise UserError(f"{path} holds no list of models; write one entry for each, beginning with '- name: …'.")
    return content


def _model(entry: Any, index: int) -> Model:
    """One entry of the list as an `Endpoint` or a `LocalModel`."""
    from jsonargparse import ArgumentError, ArgumentParser

    place = f"model {index + 1} of the list"
    if not isinstance(entry, dict) or not all(isinstance(key, str) for key in entry):
        raise UserError(f"{place} is not an object; write 'name: …' and the rest below it.")
    kinds = [kind for key, kind in {"base_url": Endpoint, "path": LocalModel}.items() if key in entry]
    if len(kinds) != 1:
        raise UserError(f"{place} needs either base_url (an endpoint) or path (a Hugging Face model).")
    if "api_key" in entry:
        raise UserError(f"{place} holds an api_key; export it, and name the variable by api_key_env.")
    place += f" ({entry.get('name', 'without a name')})"
    settings = [field.name for field in fields(kinds[0])]
    for key in entry:
        if key not in settings:
            raise UserError(
                f"{place}: {key} is none of its settings ({', '.join(settings)}); what the model itself is to be "
                "given, such as max_tokens, stands below parameters."
            )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kinds[0])
    try:
        return kinds[0](**vars(parser.instantiate(parser.parse_object(entry))))
    except (ArgumentError, TypeError, ValueError) as error:
        raise UserError(f"{place}: {' '.join(str(error).split())}") from None
