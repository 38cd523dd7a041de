"""Loading a trained ranker from its folder, and ranking with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor

from data_pipeline.errors import UserError
from urg.model_folder import require_unaltered
from urg.systems.backbone import encoder_of, load_plain_tokenizer
from urg.systems.deberta import use_sdpa
from urg.systems.encoder import ROWS_PER_CALL, EncoderRanker, RankerSettings
from urg.systems.folder import named_folder, read_system
from urg.systems.protocol import Progress, Scores, Setup

if TYPE_CHECKING:
    from data_pipeline.shards import TokenizedExample

Model = TypeVar("Model", bound=EncoderRanker)
Value = TypeVar("Value")


def load_ranker(cls: type[Model], folder: str | Path, settings: RankerSettings | None = None) -> Model:
    """The ranker of a folder, fp32, in eval mode. settings: for a folder without system.json.

    Raises UserError for a folder of another system, and for one that is damaged.
    """
    from transformers import AutoConfig

    path = Path(folder).expanduser()
    try:
        own = RankerSettings(**read_system(path, cls.system)) if settings is None else settings
        config = AutoConfig.from_pretrained(str(path), local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be loaded ({type(error).__name__}): export the model again.") from error
    require_unaltered(path)
    model = cls(encoder_of(config), load_plain_tokenizer(path), own)
    weights = read_weights(path, set(model.state_dict()))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:  # shapes
        raise UserError(f"the weights in {path} do not fit its config.json: export the model again.") from error
    return model.eval()


def read_weights(folder: Path, wanted: set[str]) -> dict[str, Tensor]:
    """The wanted weights of a folder. Raises UserError where one lacks or the file is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    weights: dict[str, Tensor] = {}
    try:
        for file in sorted(folder.glob("*.safetensors")):
            weights |= load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"the weights in {folder} are damaged ({error}): copy or export them again.") from error
    # LLM-Blender's older name of the head; buffers that older versions of transformers saved are not weights.
    weights = {name.replace("final_layer.", "head_layer."): tensor for name, tensor in weights.items()}
    lacking = sorted(wanted - set(weights))
    if lacking:
        raise UserError(f"{folder} lacks weights, {lacking[0]} among them: copy or export the model again.")
    return {name: weights[name].float() for name in wanted}


class Remembered(Generic[Value]):
    """What a model makes of a row, computed once for all systems of a setup that need it."""

    def __init__(
        self, compute: Callable[[Sequence[TokenizedExample]], list[Value]], what: str, progress: Progress
    ) -> None:
        self._compute, self._what, self._progress = compute, what, progress
        self._known: dict[tuple[str, tuple[str, ...]], Value] = {}

    def of(self, rows: Sequence[TokenizedExample]) -> list[Value]:
        """The value of each row."""
        todo = [row for row in rows if (row.id, row.texts) not in self._known]
        for start in range(0, len(todo), ROWS_PER_CALL):
            part = todo[start : start + ROWS_PER_CALL]
            with torch.inference_mode():
                found = self._compute(part)
            self._known.update(zip(((row.id, row.texts) for row in part), found, strict=True))
            self._progress(self._what, start + len(part), len(todo))
        return [self._known[row.id, row.texts] for row in rows]


@dataclass(frozen=True)
class ModelRanker:
    """Ranks rows with a loaded model."""

    scores: Remembered[Scores]

    def rank(self, rows: Sequence[TokenizedExample]) -> list[Scores | None]:
        """The model's scores."""
        return list(self.scores.of(rows))


def shared_ranker(setup: Setup, cls: type[EncoderRanker]) -> ModelRanker:
    """The ranker that all systems of this setup share."""

    def make() -> ModelRanker:
        model = on_device(load_ranker(cls, named_folder(setup, cls.system)), setup)
        return ModelRanker(Remembered(model.scores, f"{cls.system} ranks", setup.progress))

    return shared(setup, cls.system, make)


def shared(setup: Setup, name: str, make: Callable[[], Value]) -> Value:
    """What `make` gives, made once a setup."""
    if name not in setup.shared:
        setup.shared[name] = make()
    return setup.shared[name]  # type: ignore[return-value]


def on_device(model: Any, setup: Setup) -> Any:
    """The model where the setup wants it, in its precision; on a CPU with weights laid out for it, as URG's own."""
    from urg.ensemble import resolve_device, resolve_dtype
    from urg.frozen_encoder import freeze_linears
    from urg.systems.gen_fuser import GenFuser

    device = resolve_device(setup.device)
    model = model.to(device=device, dtype=resolve_dtype(setup.dtype)).requires_grad_(False)
    if isinstance(model, EncoderRanker):
        return model.freeze()
    use_sdpa(model)
    if isinstance(model, GenFuser):
        return model.freeze()
    if device.type == "cpu":
        freeze_linears(model)
    return model
