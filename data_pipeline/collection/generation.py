"""A Hugging Face model that answers batches of prompts, on a Ray actor."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.collection.prompts import Prompt, read_prompts
from data_pipeline.endpoint import Failure
from data_pipeline.errors import UserError
from data_pipeline.models import LocalModel, fill_template
from data_pipeline.schema import encodable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BROKEN_DEVICE = "CUDA error"  # after which nothing works in this process; not "CUDA out of memory"


def resolve_path(model: LocalModel) -> LocalModel:
    """`model` with the absolute path of its folder; a hub id stays. Raises `UserError` where it names neither."""
    from dataclasses import replace

    folder = Path(model.path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder}, the path of {model.name}, is no model folder (no config.json); name one.")
        return replace(model, path=str(folder.absolute()))
    if model.path.startswith(("/", ".", "~")) or model.path.count("/") > 1:
        raise UserError(f"There is no folder {folder}, the path of {model.name}; name a model folder or a hub id.")
    return model


@dataclass
class Loaded:
    """A model that is ready to generate. joint: its output begins with its input (causal)."""

    tokenizer: PreTrainedTokenizerBase
    network: Any
    joint: bool


class Generation:
    """Answers tasks: {offsets, sizes, keys} of a batch's prompts in `file` → {answers: texts or {reason, message}}.

    The model is loaded for the first task and stays. A batch that fails is tried prompt by prompt. Raises `UserError`
    where the file has changed since, and what leaves the GPU unfit for all that comes after.
    """

    def __init__(self, model: LocalModel, file: str) -> None:
        self.model, self.file = model, file
        self.loaded: Loaded | Failure | None = None

    def __call__(self, task: Mapping[str, Any]) -> dict[str, Any]:
        self.loaded = self.loaded or self._load()
        if isinstance(self.loaded, Failure):
            return {"answers": [asdict(self.loaded)] * len(task["keys"])}
        places = zip(task["offsets"], task["sizes"], map(bytes.fromhex, task["keys"]), strict=True)
        prompts = list(read_prompts(Path(self.file), places))
        try:
            return {"answers": self._generate(self.loaded, prompts)}
        except Exception as error:  # a prompt too long, one that the chat template refuses, no memory left, …
            _raise_if_broken(error)
            return {"answers": [self._generate_alone(self.loaded, prompt) for prompt in prompts]}

    def _load(self) -> Loaded | Failure:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        try:
            return load(self.model)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            return Failure("not_loaded", f"{self.model.name} cannot be loaded from {self.model.path} ({reason})")

    def _generate_alone(self, loaded: Loaded, prompt: Prompt) -> str | dict[str, str]:
        try:
            return self._generate(loaded, [prompt])[0]
        except Exception as error:
            _raise_if_broken(error)
            reason = " ".join(str(error).split())[:200]
            return asdict(Failure("generation", f"{self.model.name} failed to generate ({reason})"))

    def _generate(self, loaded: Loaded, prompts: Sequence[Prompt]) -> list[str]:
        """One answer for each prompt."""
        import torch

        model, tokenizer = self.model, loaded.tokenizer
        texts, chat = prompt_texts(model, tokenizer, prompts)
        inputs = tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=model.max_prompt_tokens,
            add_special_tokens=not chat,  # a chat template has put them already
            return_tensors="pt",
        )
        wanted = {name: inputs[name].to(loaded.network.device) for name in ("input_ids", "attention_mask")}
        torch.manual_seed(_batch_seed(model.seed, prompts))
        settings = {"do_sample": False, "max_new_tokens": model.max_new_tokens, **model.parameters}
        with torch.inference_mode():
            made = loaded.network.generate(**wanted, pad_token_id=tokenizer.pad_token_id, **settings)
        new = made[:, wanted["input_ids"].shape[1] :] if loaded.joint else made
        return [encodable(text.strip()) for text in tokenizer.batch_decode(new, skip_special_tokens=True)]


def _raise_if_broken(error: Exception) -> None:
    if _BROKEN_DEVICE in str(error):
        raise error


def load(model: LocalModel) -> Loaded:
    """The model and its tokenizer, on the GPU where the actor has one."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    seq2seq = AutoConfig.from_pretrained(model.path).is_encoder_decoder
    # A decoder goes on where its input ends, so its padding must stand before it.
    sides = {"truncation_side": "left", "padding_side": "right" if seq2seq else "left"}
    tokenizer = AutoTokenizer.from_pretrained(model.path, **sides)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    kind = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
    network = kind.from_pretrained(model.path, dtype=model.dtype).eval()
    return Loaded(tokenizer, network.to("cuda" if model.num_gpus and torch.cuda.is_available() else "cpu"), not seq2seq)


def prompt_texts(
    model: LocalModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]
) -> tuple[list[str], bool]:
    """What the model is given for each prompt, and whether that is by the tokenizer's chat template."""
    texts = [fill_template(model.template, prompt.example.instruction, prompt.example.input) for prompt in prompts]
    if not (model.chat and tokenizer.chat_template):
        return [f"{model.system}\n{text}" if model.system else text for text in texts], False
    opening = [{"role": "system", "content": model.system}] if model.system else []
    chats = [[*opening, {"role": "user", "content": text}] for text in texts]
    return [str(tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True)) for c in chats], True


def _batch_seed(seed: int, prompts: Sequence[Prompt]) -> int:
    """A seed for a batch: the same for the same prompts, whatever was generated before them."""
    digest = hashlib.sha256(b"".join([str(seed).encode(), *(prompt.key for prompt in prompts)])).digest()
    return int.from_bytes(digest[:7], "big")
