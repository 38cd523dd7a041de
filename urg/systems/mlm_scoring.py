"""MLM-Scoring: a candidate's pseudo-log-likelihood under a masked language model, without training.

PLL(y) = Σ over its tokens t of log p(y_t | y with t masked). Source: Salazar et al. 2020. Longer texts
score lower: that is the method. The text is scored alone, as there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from data_pipeline.errors import UserError
from urg.devices import moved
from urg.layout import plan_chunks
from urg.systems.backbone import load_model, load_plain_tokenizer
from urg.systems.encoder import position_limit
from urg.systems.folder import named_folder
from urg.systems.protocol import Ranked, Scores, Setup
from urg.systems.trained import ModelRanker, Remembered, on_device

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from data_pipeline.shards import TokenizedExample

TEXT_TOKENS = 128
CHUNK_TOKENS = 8192


class MaskedScorer:
    """A masked language model with its tokenizer. text_tokens: tokens of a text that are scored."""

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        text_tokens: int = TEXT_TOKENS,
        chunk_tokens: int = CHUNK_TOKENS,
    ) -> None:
        if tokenizer.mask_token_id is None:
            raise UserError("the model for mlm_scoring has no mask token: name a masked language model, as BERT.")
        self.model, self.tokenizer, self.chunk_tokens = model.eval(), tokenizer, chunk_tokens
        specials = tokenizer.num_special_tokens_to_add(pair=False)
        self.limit = min(text_tokens + specials, position_limit(model))

    def scores(self, rows: Sequence[TokenizedExample]) -> list[Scores]:
        """PLL [N] of each row's candidates, a blank one's below all others; a text of several rows is scored once."""
        texts = list(dict.fromkeys(text for row in rows for text in row.texts))
        known = dict(zip(texts, self.pseudo_log_likelihoods(texts), strict=True))
        return [_without_blanks(row, np.array([known[text] for text in row.texts], dtype=np.float64)) for row in rows]

    def pseudo_log_likelihoods(self, texts: Sequence[str]) -> list[float]:
        """PLL of each text; 0 for one without a token."""
        encoded: Any = self.tokenizer(
            list(texts), truncation=True, max_length=self.limit, return_special_tokens_mask=True, verbose=False
        )
        rows = list(zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True))
        # One copy of a text for each token of it that is masked.
        owner, place = _copies([specials for _, specials in rows])
        totals = np.zeros(len(texts))
        for width, members in plan_chunks([len(rows[i][0]) for i in owner], self.chunk_tokens):
            own = [(rows[owner[m]][0], place[m]) for m in members]
            found = self._chunk(own, min(width, position_limit(self.model)))
            np.add.at(totals, owner[members], found)
        return [float(total) for total in totals]

    def _chunk(self, copies: Sequence[tuple[list[int], int]], width: int) -> np.ndarray:
        """log p [C] of the token at its place in each copy."""
        device = next(self.model.parameters()).device
        ids_CL = torch.full((len(copies), width), int(self.tokenizer.pad_token_id or 0))
        mask_CL = torch.zeros((len(copies), width), dtype=torch.int64)
        for c, (ids, _) in enumerate(copies):
            ids_CL[c, : len(ids)] = torch.tensor(ids)
            mask_CL[c, : len(ids)] = 1
        place_C = torch.tensor([place for _, place in copies])
        copy_C = torch.arange(len(copies))
        token_C = ids_CL[copy_C, place_C]
        ids_CL[copy_C, place_C] = int(self.tokenizer.mask_token_id)
        with _head_only_at(self.model, moved(place_C, device)):
            logits_C1V = self.model(input_ids=moved(ids_CL, device), attention_mask=moved(mask_CL, device)).logits
        log_p_CV = logits_C1V[:, 0].float().log_softmax(dim=-1)
        return log_p_CV.gather(1, moved(token_C, device)[:, None])[:, 0].double().cpu().numpy()  # type: ignore[no-any-return]


def _without_blanks(row: TokenizedExample, pll_N: Scores) -> Scores:
    """A text without a token has PLL 0, the best there is: an empty answer is put last instead."""
    blank_N = np.array([not text.strip() for text in row.texts])
    return np.where(blank_N, pll_N.min() - 1.0, pll_N)


@contextmanager
def _head_only_at(model: Any, place_C: Tensor) -> Iterator[None]:
    """Let the head see the states at these places only, [C, 1, D]: over a vocabulary it costs more than the encoder."""

    def keep(module: Any, inputs: Any, output: Any) -> Any:
        states_CLD = output.last_hidden_state
        output.last_hidden_state = states_CLD[torch.arange(len(place_C), device=place_C.device), place_C][:, None]
        return output

    hook = model.base_model.register_forward_hook(keep)
    try:
        yield
    finally:
        hook.remove()


def _copies(special_masks: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """(text, place) of every token that is not special."""
    found = [(i, t) for i, mask in enumerate(special_masks) for t, special in enumerate(mask) if not special]
    owner, place = np.array(found, dtype=np.int64).reshape(-1, 2).T
    return owner, place


def mlm_scoring(setup: Setup) -> Ranked:
    """The likeliest candidate."""
    folder = named_folder(setup, "mlm_scoring")
    model = load_model("AutoModelForMaskedLM", folder, "a masked language model")
    scorer = MaskedScorer(on_device(model, setup), load_plain_tokenizer(folder))
    return Ranked("mlm_scoring", "ranker", ModelRanker(Remembered(scorer.scores, "mlm_scoring", setup.progress)))
