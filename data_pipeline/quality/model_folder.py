"""Metric models: what folder or hub id they come from, how they run, and loading them whole or not at all."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError

LATE_POSITIONS = ("roberta", "xlm-roberta", "camembert")
"""Model types that start counting positions after the padding index, so that two of them are never used."""
RELATIVE_POSITIONS = ("t5", "mt5", "umt5")
"""Model types whose positions are relative, whatever their config says; DeBERTa's says so itself."""
DTYPES = ("float32", "bfloat16", "float16")
NO_LIMIT = 10**9
"""A tokenizer without a limit says 10^30."""


@dataclass(frozen=True)
class MetricModel:
    """One metric's model, and how it runs."""

    name: str
    """A local folder with config.json, weights and tokenizer, or a hub id."""
    weights: str = ""
    """A file of other weights for it, .safetensors or a state dict of torch.save; "" = its own."""
    device: str = "cpu"
    """cpu or cuda."""
    dtype: str = "float32"
    """float32, bfloat16 or float16."""
    batch_tokens: int = 2048
    """Tokens of one forward pass, padding counted; 1 or more. A longer text makes a batch of its own. Where a metric
    reads log-probabilities, memory is some times this × the vocabulary × 4 bytes."""
    max_tokens: int | None = None
    """bleurt: tokens at most of reference and text together; None = 512."""


def require_model(metric: str, name: str, kind: str) -> None:
    """Raise `UserError` where `name` cannot be the metric's model: by its config alone, before anything is computed.

    kind: the class of transformers that is to load it, such as AutoModelForSeq2SeqLM.
    """
    import transformers

    _require_folder(metric, name)
    try:
        config = load_config(f"the {metric} model {name}", name)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise _unloadable(metric, name, " ".join(str(error).split())[:200]) from error
    if type(config) not in getattr(transformers, kind)._model_mapping:
        raise _unloadable(metric, name, f"no {kind} is known for models of type {config.model_type}")


def load_config(what: str, name: str) -> Any:
    """The config.json of a folder or hub id: from the local cache where it is there, else downloaded.

    what: how the error calls it. Raises `UserError`, in seconds, where the hub cannot be reached; else what
    transformers raises for a config that cannot be read.
    """
    from transformers import AutoConfig

    from data_pipeline.tokenization import require_hub

    source = _source(name)
    if Path(source).is_dir():
        return AutoConfig.from_pretrained(source)
    try:
        return AutoConfig.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError):
        require_hub(what)
    return AutoConfig.from_pretrained(source)


def _require_folder(metric: str, name: str) -> None:
    """Raise `UserError` for a path without a folder and for a folder without a config.json."""
    path = Path(name).expanduser()
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(
            f"{name} is no model folder for {metric}: it has no config.json; name a folder that save_pretrained wrote."
        )
    if not path.is_dir() and (path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise UserError(f"There is no model folder {name} for {metric}; name a folder with config.json, or a hub id.")


def fingerprint(name: str, weights: str = "") -> str:
    """SHA-256 of a model folder's files and of the extra weights, by content; of the bare name for a hub id."""
    folder = Path(name).expanduser()
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    digest = hashlib.sha256() if files else hashlib.sha256(name.encode())
    for path in [*files, *([Path(weights).expanduser()] if weights else [])]:
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def load_model(metric: str, auto_class: Any, model: MetricModel) -> tuple[Any, Any]:
    """(tokenizer, model in eval mode on its device) of `auto_class`, one of transformers' AutoModelFor….

    Raises `UserError` where it cannot be loaded, or lacks weights, which transformers would fill with random numbers.
    """
    from transformers import AutoTokenizer

    _require_folder(metric, model.name)
    source = _source(model.name)
    try:
        loaded, info = auto_class.from_pretrained(source, dtype=model.dtype, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except _unreadable() as error:
        raise _unloadable(metric, model.name, " ".join(str(error).split())[:200]) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise _unloadable(metric, model.name, f"it lacks the weights {', '.join(missing[:3])}")
    if model.weights:
        _replace_weights(loaded, model.weights)
    return tokenizer, loaded.eval().to(model.device)


def _source(name: str) -> str:
    """What transformers loads from: the folder's absolute path, or the hub id."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.is_dir() else name


def _unloadable(metric: str, name: str, reason: str) -> UserError:
    return UserError(
        f"The {metric} model {name} cannot be loaded ({reason}); "
        "name a folder of that kind of model, or a hub id that this machine can reach."
    )


def _unreadable() -> tuple[type[Exception], ...]:
    """What reading a damaged folder or file of weights raises."""
    from pickle import UnpicklingError

    from safetensors import SafetensorError

    formats = (UnpicklingError, SafetensorError)
    return OSError, EOFError, RuntimeError, TypeError, ValueError, KeyError, AttributeError, ImportError, *formats


def _replace_weights(model: Any, file: str) -> None:
    """Load a state dict into `model`. Raises `UserError` where it does not fit; nothing but tensors is unpickled."""
    import torch
    from safetensors.torch import load_file

    path = Path(file).expanduser()
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        unfit = model.load_state_dict(state, strict=False)
    except _unreadable() as error:
        raise UserError(f"The weights {file} cannot be loaded ({' '.join(str(error).split())[:200]}).") from error
    absent = [name for name in unfit.missing_keys if name not in _tied(model)]
    if absent or unfit.unexpected_keys:
        odd = ", ".join([*absent, *unfit.unexpected_keys][:3])
        raise UserError(f"The weights {file} are not those of this model (see {odd}); name a file of its own kind.")
    model.tie_weights()


def _tied(model: Any) -> set[str]:
    """Names of state-dict entries that share storage with another one, or that the checkpoint need not hold."""
    seen: dict[int, list[str]] = {}
    for name, tensor in model.state_dict().items():
        seen.setdefault(tensor.data_ptr(), []).append(name)
    shared = {name for names in seen.values() if len(names) > 1 for name in names}
    return shared | {name for name in model.state_dict() if name.endswith("final_logits_bias")}


def positions(config: Any) -> int | None:
    """Tokens that a model has positions for, by its config; None where they are relative or it names no number.

    DeBERTa of v3 has a `max_position_embeddings` of 512 and takes any length: `position_biased_input` is false.
    """
    kind = getattr(config, "model_type", "")
    named = getattr(config, "max_position_embeddings", None)
    if not named or kind in RELATIVE_POSITIONS or not getattr(config, "position_biased_input", True):
        return None
    return int(named) - 2 * (kind in LATE_POSITIONS)


def own_limit(tokenizer: Any, config: Any) -> int | None:
    """Tokens that a sequence may have: the less of what tokenizer and model name; None where neither names a limit."""
    limits = [limit for limit in (tokenizer.model_max_length, positions(config)) if limit and limit < NO_LIMIT]
    return int(min(limits)) if limits else None


def token_limit(tokenizer: Any, config: Any, at_most: int) -> int:
    """Tokens that a sequence may have: the least of what tokenizer and model name and of `at_most`."""
    return min(own_limit(tokenizer, config) or at_most, at_most)
