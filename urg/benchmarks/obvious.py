"""URG as one would write it first, with nothing but the model library: what our code is compared with.

All candidates are padded to the longest, attention is eager, because the library returns weights only then, keys and
values of all tokens are projected for the one ranking step, and each pass of training is a pass of its own.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from urg.losses import rank_loss, token_cross_entropy, top_m_kl
from urg.model import URG, select


class ObviousURG:
    """The same weights as a URG, and the same results, by the obvious code."""

    def __init__(self, model: URG) -> None:
        """model: copied."""
        self.t5: Any = copy.deepcopy(model.t5)
        self.t5.set_attn_implementation("eager")
        self.k = model.settings.k

    def encode(self, ids_BNL: Tensor, mask_BNL: Tensor) -> Tensor:
        """[B, N, L] → [B, N, L, D]."""
        states = self.t5.encoder(input_ids=ids_BNL.flatten(0, 1), attention_mask=mask_BNL.flatten(0, 1))
        return states.last_hidden_state.unflatten(0, ids_BNL.shape[:2])

    def scores(self, states_BNLD: Tensor, mask_BNL: Tensor) -> Tensor:
        """Equations 5 and 6: [B, N], in the weights' dtype."""
        start = torch.full((len(mask_BNL), 1), self.t5.config.decoder_start_token_id, device=mask_BNL.device)
        output = self.t5.decoder(
            input_ids=start,
            encoder_hidden_states=states_BNLD.flatten(1, 2),
            encoder_attention_mask=mask_BNL.flatten(1),
            output_attentions=True,
            use_cache=False,
        )
        weights_BNL = torch.stack(output.cross_attentions).mean((0, 2))[:, 0].view(mask_BNL.shape)
        return (weights_BNL * mask_BNL).sum(-1) / mask_BNL.sum(-1)

    @torch.inference_mode()
    def rank(self, ids_BNL: Tensor, mask_BNL: Tensor) -> Tensor:
        """Scores [B, N]."""
        return self.scores(self.encode(ids_BNL, mask_BNL), mask_BNL)

    def loss(
        self, ids_BNL: Tensor, mask_BNL: Tensor, target_BT: Tensor, quality_BN: Tensor, encodes: int
    ) -> tuple[Tensor, Tensor]:
        """(γ·rank, the generation terms): equation 11 at the paper's settings; token means over the batch.

        encodes: 3 encodes anew for each pass, what its equations say; 1 keeps the states of the first.
        """
        states_BNLD = self.encode(ids_BNL, mask_BNL)
        scores_BN = self.scores(states_BNLD, mask_BNL)
        rank_B = rank_loss(scores_BN.float(), mask_BNL.sum(-1), quality_BN)
        real_BN = torch.ones_like(scores_BN, dtype=torch.bool)
        top_BN, last_BN = select(scores_BN.detach(), real_BN, self.k)
        logits = [
            self._decode(ids_BNL, mask_BNL, None if encodes == 3 else states_BNLD, chosen_BN, target_BT)
            for chosen_BN in (top_BN, top_BN | last_BN)
        ]
        real_BT = target_BT != self.t5.config.pad_token_id
        kl = top_m_kl(logits[0], logits[1], m=32, tau=2.0)[real_BT].mean()
        entropies = [token_cross_entropy(own, target_BT)[real_BT].mean() for own in logits]
        return 5.0 * rank_B.mean(), 2.0 * kl + entropies[0] + entropies[1]

    def _decode(
        self, ids_BNL: Tensor, mask_BNL: Tensor, states_BNLD: Tensor | None, chosen_BN: Tensor, target_BT: Tensor
    ) -> Tensor:
        """Logits [B, T, V] given the chosen candidates, one after the other with their padding."""
        size = (len(ids_BNL), -1, ids_BNL.shape[-1])
        mask_BKL = mask_BNL[chosen_BN].view(size)
        if states_BNLD is None:
            states_BKLD = self.encode(ids_BNL[chosen_BN].view(size), mask_BKL)
        else:
            states_BKLD = states_BNLD[chosen_BN].view(*mask_BKL.shape, -1)
        return self.t5(
            encoder_outputs=BaseModelOutput(last_hidden_state=states_BKLD.flatten(1, 2)),
            attention_mask=mask_BKL.flatten(1),
            decoder_input_ids=self.t5._shift_right(target_BT),
            use_cache=False,
        ).logits
