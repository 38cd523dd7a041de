"""Log-likelihoods under a causal language model, as labels of a candidate. Natural logarithm: ≤ 0, higher is better.

log p(reference | prompt) is the same for all candidates of a row, so it says nothing about any of them. What does:

    reference_logprob   log p(reference | prompt, candidate): does the answer help the model to the reference?
    candidate_logprob   log p(candidate | prompt): is the answer one that the model would give? Needs no reference.

Each comes as the mean over tokens and, as <name>_sum, as the sum, which falls with length. The context is the prompt
(and the candidate) each followed by a blank line: no chat template, so that figures of two models mean the same.
MixInstruct's own `logprobs` is another score, whose model its card does not name; it is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from data_pipeline.quality.batches import in_batches, log_probabilities, padded
from data_pipeline.quality.model_folder import MetricModel, load_model, token_limit

MAX_TOKENS = 2048  # of context and continuation together
GAP = "\n\n"


class LogLikelihood:
    """A causal language model (folder or hub id) that scores continuations. `UserError` where it cannot load."""

    def __init__(self, model: MetricModel) -> None:
        from transformers import AutoModelForCausalLM

        self._tokenizer, self._model = load_model("log-likelihood", AutoModelForCausalLM, model)
        self._settings = model
        self._limit = token_limit(self._tokenizer, self._model.config, MAX_TOKENS)

    def __call__(self, contexts: Sequence[str], continuations: Sequence[str]) -> tuple[list[float], list[float]]:
        """Mean and sum over tokens of log p(continuation | context), a value a pair.

        The two are tokenized apart. What exceeds the model's limit is cut: the continuation at its end and to half
        the limit at least, then the context at its beginning. A continuation without a token is NaN.
        """
        pairs = [self._fit(*pair) for pair in zip(self._ids(contexts, True), self._ids(continuations), strict=True)]
        lengths = [len(context) + len(continuation) for context, continuation in pairs]
        sums = in_batches(
            lengths, self._settings.batch_tokens, lambda batch: self._score([pairs[index] for index in batch])
        )
        counts = [len(continuation) for _, continuation in pairs]
        nan = float("nan")
        means = [total / count if count else nan for total, count in zip(sums, counts, strict=True)]
        return means, [total if count else nan for total, count in zip(sums, counts, strict=True)]

    def _ids(self, texts: Sequence[str], start: bool = False) -> list[list[int]]:
        """Tokens of each text; with `start`, after the token that begins a sequence (bos, or else eos)."""
        if not texts:
            return []
        ids: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        first = self._tokenizer.bos_token_id
        first = self._tokenizer.eos_token_id if first is None else first
        return [[first, *row] for row in ids] if start and first is not None else ids

    def _fit(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        kept = continuation[: max(self._limit - len(context), self._limit // 2)]
        room = self._limit - len(kept)
        return (context if len(context) <= room else [*context[:1], *context[len(context) - room + 1 :]]), kept

    def _score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        """One batch: the sum of each continuation's log-probabilities. Padded on the right, which no token looks at."""
        import torch

        fill = int(self._tokenizer.pad_token_id or 0)
        ids_BL, mask_BL = padded([context + continuation for context, continuation in pairs], fill, self._device)
        for row, (context, _) in enumerate(pairs):
            mask_BL[row, : len(context)] = 0
        attention_BL, _ = padded([[1] * (len(context) + len(rest)) for context, rest in pairs], 0, self._device)
        with torch.inference_mode():
            logits_BLV = self._model(input_ids=ids_BL, attention_mask=attention_BL, use_cache=False).logits
        return log_probabilities(logits_BLV[:, :-1], ids_BL[:, 1:], mask_BL[:, 1:]).sum(1).tolist()  # type: ignore[no-any-return]

    @property
    def _device(self) -> str:
        return self._settings.device


def reference_context(prompt: str, candidate: str) -> str:
    """What stands before the reference in reference_logprob."""
    return f"{prompt}{GAP}{candidate}{GAP}"


def candidate_context(prompt: str) -> str:
    """What stands before the candidate in candidate_logprob."""
    return f"{prompt}{GAP}"
