"""The models that answer: how each is reached and asked. Light to import, checked on construction."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

from data_pipeline.errors import UserError

Messages = list[dict[str, str]]

# What decides when and where an answer is made, but not which.
_NOT_THE_ANSWERS = (
    *("name", "api_key_env", "requests_per_minute", "concurrency", "timeout_s", "retries", "give_up_after"),
    *("batch_size", "actors", "num_cpus", "num_gpus"),
)
_OURS = ("model", "messages", "stream", "n")  # parameters that would change what an answer is


@dataclass(frozen=True)
class Endpoint:
    """A model behind an OpenAI-compatible address, and how to ask it."""

    name: str
    """What the model is called in our data."""
    base_url: str
    """The address up to and without `/chat/completions`, such as https://api.openai.com/v1."""
    model: str
    """What the endpoint calls the model."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key, in capitals; null = no key. Never the key itself."""
    system: str = ""
    """System prompt; empty = none."""
    template: str = "{question}"
    """The user's message. {instruction} and {input} stand for the row's texts, {question} for both, one per line."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Passed on as they are: temperature, max_tokens, seed, …"""
    requests_per_minute: float | None = None
    """Requests sent in a minute at most, retries counted; null = no limit."""
    concurrency: int = 4
    """Questions under way at a time, 1 or more."""
    timeout_s: float = 120.0
    """Seconds until a request is given up that has not been answered in full."""
    retries: int = 5
    """Further attempts at a question after 429, 5xx, timeout, lost connection or broken JSON; waits double from 1 s."""
    give_up_after: int = 5
    """Questions in a row, all attempts used up, after which the endpoint counts as down and the rest is not asked."""

    def __post_init__(self) -> None:
        check_name(self.name)
        _check_address(self.name, self.base_url)
        check_template(self.name, self.template)
        if not self.model:
            raise UserError(f"model of {self.name} is empty; give the name that the endpoint knows it by.")
        # The value is not shown: it may be the key itself, put in the wrong place.
        if self.api_key_env is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.api_key_env):
            raise UserError(
                f"api_key_env of {self.name} is not the name of an environment variable in capitals; give one such as "
                "OPENAI_API_KEY, never the key itself."
            )
        _check_parameters(self.name, self.parameters)
        for name, least in {"concurrency": 1, "retries": 0, "give_up_after": 1}.items():
            if getattr(self, name) < least:
                raise UserError(f"{name} of {self.name} is {getattr(self, name)}; give {least} or more.")
        for name in ("timeout_s", "requests_per_minute"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UserError(f"{name} of {self.name} is {value}; give a number above 0.")

    @property
    def decoding_method(self) -> str:
        """How the rows call the way its answers are made: the endpoint's own."""
        return "endpoint"

    def messages(self, instruction: str, input: str = "") -> Messages:
        """The chat that asks this question: the system prompt, where there is one, and the filled template."""
        opening = [{"role": "system", "content": self.system}] if self.system else []
        return [*opening, {"role": "user", "content": fill_template(self.template, instruction, input)}]


@dataclass(frozen=True)
class LocalModel:
    """A Hugging Face model, causal or seq2seq, run by Ray actors."""

    name: str
    """What the model is called in our data."""
    path: str
    """A model folder, the same on all nodes, or a hub id. A folder whose content changes counts as the same model."""
    system: str = ""
    """System prompt, where the model has a chat template; else put above the question. Empty = none."""
    template: str = "{question}"
    """As an endpoint's."""
    chat: bool = True
    """Whether the tokenizer's chat template is used, where there is one."""
    max_prompt_tokens: int = 1024
    """Tokens kept of the prompt: the last ones."""
    max_new_tokens: int = 128
    """Tokens of an answer at most."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Passed to `generate`: do_sample, temperature, top_p, num_beams, … Greedy where empty."""
    seed: int = 0
    """Of sampling; the same prompts in the same batches give the same answers."""
    dtype: str = "auto"
    """Of the weights: auto (as they are stored), float32, bfloat16 or float16."""
    batch_size: int = 8
    """Prompts generated for at a time, of about the same length."""
    actors: int = 1
    """Copies of the model."""
    num_cpus: float = 1.0
    """CPUs of an actor."""
    num_gpus: float = 0.0
    """GPUs of an actor, fractions too; 0 = runs on the CPU."""

    def __post_init__(self) -> None:
        check_name(self.name)
        check_template(self.name, self.template)
        _check_parameters(self.name, self.parameters)
        if not self.path:
            raise UserError(f"path of {self.name} is empty; give a model folder or a hub id.")
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise UserError(f"dtype of {self.name} is {self.dtype}; choose auto, float32, bfloat16 or float16.")
        for name in ("max_prompt_tokens", "max_new_tokens", "batch_size", "actors"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} of {self.name} is {getattr(self, name)}; give 1 or more.")
        for name in ("num_cpus", "num_gpus"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"{name} of {self.name} is {getattr(self, name)}; give 0 or more.")

    @property
    def decoding_method(self) -> str:
        """How the rows call the way its answers are made."""
        return "sampling" if self.parameters.get("do_sample") else "greedy"


Model = Endpoint | LocalModel


def model_key(model: Model) -> str:
    """SHA-256 of all that decides what the model answers: address or path, prompts, parameters; not its name here."""
    settings = {name: value for name, value in asdict(model).items() if name not in _NOT_THE_ANSWERS}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def check_name(name: str) -> None:
    """Raise `UserError` where `name` cannot name a model: empty, or with a comma, which separates a pair's."""
    if not name.strip() or "," in name or not name.isprintable():
        raise UserError(f"name is {name!r}; give each model a printable name without a comma.")


def _check_parameters(name: str, parameters: dict[str, Any]) -> None:
    """Raise `UserError` where the parameters are no JSON object, or hold what is not theirs to say."""
    for key in (key for key in _OURS if key in parameters):
        raise UserError(f"parameters of {name} hold {key}, which is set by the project; leave it out.")
    try:
        json.dumps(parameters, allow_nan=False, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise UserError(f"parameters of {name} cannot be sent as JSON ({error}); quote dates, leave NaN out.") from None


def check_template(name: str, template: str) -> None:
    """Raise `UserError` where `template` of the model `name` has no place for the question."""
    if not re.search(r"\{(question|instruction|input)\}", template):
        raise UserError(f"template of {name} has neither {{question}}, {{instruction}} nor {{input}}; add one of them.")


def _check_address(name: str, base_url: str) -> None:
    """Raise `UserError` unless `base_url` is http(s)://host[:port][/path], which has no place for a secret."""
    try:
        parts = urlsplit(base_url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    else:
        sound = sound and not (parts.username or parts.password or parts.query or parts.fragment)
    if not sound:
        raise UserError(
            f"base_url of {name} is not of the form https://host/path (no login, no ?, no #); give such an address, "
            "and a key by api_key_env."
        )
    if parts.path.rstrip("/").endswith("/chat/completions"):
        raise UserError(f"base_url of {name} ends with /chat/completions, which is put behind it; leave that out.")


def fill_template(template: str, instruction: str, input: str = "") -> str:
    """`template` with the question in its places; what looks like a place within the question is left alone."""
    from data_pipeline.tokenization import question_text

    texts = {"question": question_text(instruction, input), "instruction": instruction, "input": input}
    return fill(template, texts)


def fill(template: str, texts: Mapping[str, str]) -> str:
    """`template` with each {name} of `texts` replaced; what looks like a place within the texts is left alone."""
    places = "|".join(map(re.escape, texts))
    return re.sub(rf"\{{({places})\}}", lambda place: texts[place[1]], template)
