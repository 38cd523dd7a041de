"""GenFuser: a T5 that reads instruction, input and the K best candidates as one text, and writes a better answer.
Source: Jiang et al. 2023 (LLM-Blender). Which candidates are the best, a ranker says; in training `fuser.choose`."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from data_pipeline.errors import UserError
from data_pipeline.tokenization import decode_texts
from urg.batching import pack
from urg.devices import moved
from urg.model import URG, Settings
from urg.model_folder import require_unaltered, seal
from urg.system_config import BY_LABEL
from urg.systems.backbone import load_plain_tokenizer
from urg.systems.folder import SYSTEM_FILE, named_folder, read_system, write_system
from urg.systems.protocol import Fusion, Progress, Scores, Setup
from urg.systems.trained import on_device, shared

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from data_pipeline.shards import TokenizedExample

REQUEST = "Summarize candidates into a better one for the given instruction:"
ROWS_PER_CALL = 16


@dataclass(frozen=True)
class FuserSettings:
    """What a fuser's folder says beyond its weights: stored in system.json."""

    k: int = 3
    """K, candidates fused."""
    source_tokens: int = 1024
    """Tokens kept of the whole input."""
    candidate_tokens: int = 128
    """Tokens kept of one candidate."""
    target_tokens: int = 128
    """Tokens kept of a reference, and the longest fused text by default."""
    label: str | None = None
    """The score that it was trained by, where `choose` is label."""
    choose: str = BY_LABEL
    """What chose the candidates in training: label, random, or a system."""
    generated_data: bool = False
    """Whether it was trained on generated data."""
    steps: int = 0
    """Optimizer steps that it was trained for."""


class FuserTexts:
    """Token ids of what the fuser reads and writes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: FuserSettings) -> None:
        if tokenizer.eos_token is None or tokenizer.pad_token_id is None:
            raise UserError("the fuser's tokenizer has no pad or end-of-sequence token: use a T5-style tokenizer.")
        self.tokenizer, self.settings = tokenizer, settings
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        special |= set(tokenizer.all_special_tokens)
        self._special = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))))
        self._vocabulary = set(tokenizer.get_vocab())

    def source(self, row: TokenizedExample, chosen: Sequence[int]) -> np.ndarray:
        """The input's ids, int64, at most `source_tokens`. Where it is too long, instruction and input are cut, so that
        the candidates and the request stay. chosen: the candidates, best first."""
        end = self.tokenizer.eos_token
        head = end.join(["Instruction: " + self._plain(row.instruction), "Input: " + self._plain(row.input)])
        candidates = [f"Candidate {i}: {self._name(i)}{self._short(row.texts[c])}" for i, c in enumerate(chosen)]
        tail = end.join([*candidates, REQUEST])
        ids, limit = self._ids(head + end + tail), self.settings.source_tokens
        if len(ids) > limit:
            kept = self._ids(end + tail)[-limit:]
            ids = self._ids(head)[: limit - len(kept)] + kept
        return np.array(ids, dtype=np.int64)

    def target(self, text: str) -> np.ndarray:
        """The reference's ids, int64, ending in eos; none for a blank one."""
        if not text.strip():
            return np.zeros(0, dtype=np.int64)
        ids = self._ids(self._plain(text))[: self.settings.target_tokens - 1]
        return np.array([*ids, self.tokenizer.eos_token_id], dtype=np.int64)

    def _short(self, text: str) -> str:
        text, limit = self._plain(text), self.settings.candidate_tokens
        ids = self._ids(text)
        return text if len(ids) <= limit else f"{self.tokenizer.decode(ids[:limit])}..."

    def _name(self, index: int) -> str:
        """T5's sentinel for the candidate, where the tokenizer has it."""
        sentinel = f"<extra_id_{index}>"
        return f"{sentinel}:" if sentinel in self._vocabulary else ""

    def _plain(self, text: str) -> str:
        return self._special.sub(" ", text)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


class GenFuser(nn.Module):
    """A T5 with its tokenizer and settings."""

    t5: Any

    def __init__(self, t5: nn.Module, tokenizer: PreTrainedTokenizerBase, settings: FuserSettings) -> None:
        super().__init__()
        self.t5 = t5
        self.texts = FuserTexts(tokenizer, settings)
        self.settings = settings
        self._generate: Callable[..., Tensor] = self._by_the_library

    def freeze(self) -> GenFuser:
        """For writing alone from here on, by URG's own encoder and decoder of a frozen T5 (`URG.freeze`)."""
        self._generate = functools.partial(_by_urg, URG(self.t5, Settings()).freeze())
        return self.eval()

    def forward(self, source_BL: Tensor, mask_BL: Tensor, target_BT: Tensor) -> Tensor:
        """Teacher-forced logits [B, T, V]."""
        inputs = self.t5._shift_right(target_BT)
        return self.t5(source_BL, attention_mask=mask_BL, decoder_input_ids=inputs, use_cache=False).logits  # type: ignore[no-any-return]

    @torch.inference_mode()
    def write(self, sources: Sequence[np.ndarray], **generation: Any) -> list[str]:
        """A text for each input. generation: options of `generate`."""
        options = {"max_new_tokens": self.settings.target_tokens, "do_sample": False} | generation
        return decode_texts(self._generate(sources, **options), self.texts.tokenizer)

    def _by_the_library(self, sources: Sequence[np.ndarray], **options: Any) -> Tensor:
        device = self.t5.device
        ids_BL, mask_BL = pad(sources, int(self.texts.tokenizer.pad_token_id))
        written: Tensor = self.t5.generate(moved(ids_BL, device), attention_mask=moved(mask_BL, device), **options)
        return written

    def save_pretrained(self, folder: str | Path, state_dict: dict[str, Tensor], steps: int) -> None:
        """Write a Hugging Face folder (safetensors) with tokenizer, system.json and SHA256SUMS."""
        weights = {name.removeprefix("t5."): tensor for name, tensor in state_dict.items()}
        self.t5.save_pretrained(str(folder), state_dict=weights)
        self.texts.tokenizer.save_pretrained(str(folder))
        write_system(Path(folder), "gen_fuser", asdict(replace(self.settings, steps=steps)))
        seal(Path(folder), like=SYSTEM_FILE)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> GenFuser:
        """The fuser of a folder, fp32, in eval mode. Raises UserError for another folder."""
        path = Path(folder).expanduser()
        try:
            settings = FuserSettings(**read_system(path, "gen_fuser"))
        except TypeError as error:
            raise UserError(f"{path} was written by another version ({error}): train it again.") from error
        require_unaltered(path)
        return cls(URG.from_pretrained(path).t5, load_plain_tokenizer(path), settings).eval()


def _by_urg(model: URG, sources: Sequence[np.ndarray], **options: Any) -> Tensor:
    """Each text as the only candidate of a query, without a question before it."""
    tokens_S, layout = pack([[ids] for ids in sources])
    tokens_S, layout = moved(tokens_S, model.network.device), moved(layout, model.network.device)
    return model.fuse(model.encode(tokens_S, layout), layout, layout.mask_BN, **options)


def pad(rows: Sequence[np.ndarray], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids of ragged rows → int64 [B, L], L a multiple of 8, and the mask [B, L] of the real ones."""
    from urg.layout import round_up

    width = round_up(max(1, *(len(row) for row in rows)) if rows else 1)
    ids_BL = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    mask_BL = torch.zeros((len(rows), width), dtype=torch.bool)
    for b, row in enumerate(rows):
        ids_BL[b, : len(row)] = torch.from_numpy(row)
        mask_BL[b, : len(row)] = True
    return ids_BL, mask_BL


def best_first(scores: np.ndarray, k: int) -> tuple[int, ...]:
    """The K best candidates by score, best first; ties by index, a missing score last."""
    order = np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")
    return tuple(int(i) for i in order[:k])


@dataclass(frozen=True)
class FusesBest:
    """Fuses the K candidates that a ranker scored highest."""

    model: GenFuser
    progress: Progress
    num_beams: int = 4
    max_new_tokens: int | None = None

    def fuse(self, rows: Sequence[TokenizedExample], scores: Sequence[Scores]) -> list[Fusion]:
        """A text for each row; rows of like length are written together."""
        chosen = [best_first(own, self.model.settings.k) for own in scores]
        sources = [self.model.texts.source(row, own) for row, own in zip(rows, chosen, strict=True)]
        order = sorted(range(len(rows)), key=lambda i: -len(sources[i]))
        options = {"max_new_tokens": self.max_new_tokens} if self.max_new_tokens else {}
        texts: dict[int, str] = {}
        for start in range(0, len(order), ROWS_PER_CALL):
            part = order[start : start + ROWS_PER_CALL]
            written = self.model.write([sources[i] for i in part], num_beams=self.num_beams, **options)
            texts |= dict(zip(part, written, strict=True))
            self.progress("gen_fuser fuses", start + len(part), len(rows))
        return [Fusion(texts[i], own) for i, own in enumerate(chosen)]


def shared_fuser(setup: Setup) -> FusesBest:
    """The fuser that all systems of this setup share. SystemUnavailable where no folder was named."""

    def make() -> FusesBest:
        model = on_device(GenFuser.from_pretrained(named_folder(setup, "gen_fuser")), setup)
        return FusesBest(model, setup.progress, setup.num_beams, setup.max_new_tokens)

    return shared(setup, "gen_fuser", make)
