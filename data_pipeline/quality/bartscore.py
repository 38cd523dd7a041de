"""BARTScore: how probable a sequence-to-sequence model finds the reference, given the text.

Source: Yuan et al. 2021, all weights equal: the mean over the reference's tokens of log p(token | text, tokens before).
Direction text → reference (the paper's "recall"), as LLM-Blender has it; natural logarithm, so ≤ 0, higher is better.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from data_pipeline.errors import UserError
from data_pipeline.quality.batches import in_batches, log_probabilities, padded
from data_pipeline.quality.model_folder import MetricModel, load_model, token_limit
from data_pipeline.quality.rouge import require_references

if TYPE_CHECKING:
    from torch import Tensor

MAX_TOKENS = 1024  # of either side; bart-large's limit


class BartScore:
    """The metric with its model: any sequence-to-sequence folder or hub id, facebook/bart-large-cnn in the literature.

    model.weights: other weights for it, such as the paper's after ParaBank2. Raises `UserError` where it cannot load.
    """

    def __init__(self, model: MetricModel) -> None:
        from transformers import AutoModelForSeq2SeqLM

        self._tokenizer, self._model = load_model("bartscore", AutoModelForSeq2SeqLM, model)
        self._settings = model
        self._limit = token_limit(self._tokenizer, self._model.config, MAX_TOKENS)
        if self._model.config.decoder_start_token_id is None:
            raise UserError(
                f"The bartscore model {model.name} has no decoder_start_token_id in its config.json; set it."
            )

    def __call__(self, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        """Mean token log-probability of each reference given the prediction beside it; longer texts are cut.

        Raises ValueError where lengths differ or a reference is blank.
        """
        require_references(predictions, references)
        sources, targets = self._ids(predictions), self._ids(references)
        longest = [max(len(source), len(target)) for source, target in zip(sources, targets, strict=True)]
        return in_batches(
            longest,
            self._settings.batch_tokens,
            lambda batch: self._score([sources[i] for i in batch], [targets[i] for i in batch]),
        )

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self._tokenizer(list(texts), truncation=True, max_length=self._limit) if texts else {"input_ids": []}
        return encoded["input_ids"]  # type: ignore[no-any-return]

    def _score(self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> list[float]:
        """One batch: mean log-probability over the real tokens of each target."""
        import torch

        fill = int(self._tokenizer.pad_token_id or 0)  # masked: any token would do
        source_BL, source_mask_BL = padded(sources, fill, self._settings.device)
        target_BT, target_mask_BT = padded(targets, fill, self._settings.device)
        with torch.inference_mode():
            logits_BTV = self._model(
                input_ids=source_BL,
                attention_mask=source_mask_BL,
                decoder_input_ids=self._shifted(target_BT),
                use_cache=False,
            ).logits
        totals_B = log_probabilities(logits_BTV, target_BT, target_mask_BT).sum(1)
        return (totals_B / target_mask_BT.sum(1)).tolist()  # type: ignore[no-any-return]

    def _shifted(self, target_BT: Tensor) -> Tensor:
        """What the decoder reads: its start token, then the target without its last token."""
        start = self._model.config.decoder_start_token_id
        return target_BT.roll(1, dims=1).index_fill(1, target_BT.new_tensor([0]), start)
