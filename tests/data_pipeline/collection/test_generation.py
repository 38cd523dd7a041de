from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.collect import collect
from data_pipeline.collection import generation
from data_pipeline.collection.config import CollectConfig
from data_pipeline.collection.generation import Generation, prompt_texts, resolve_path
from data_pipeline.collection.prompts import Prompts, parse_prompt, survey_prompts
from data_pipeline.errors import UserError
from data_pipeline.models import LocalModel

Write = Callable[..., Path]
QUESTIONS = [
    "the cat",
    "12 dogs ran 3 miles to see 45 birds near old stone bridge",
    "a mat",
    "on the old mat sat a cat",
]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Callable[[str], Path]:
    """model_folder("causal" or "seq2seq"): a small model with random weights."""
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    shape = {"d_model": 32, "d_kv": 8, "num_heads": 4, "num_layers": 1, "d_ff": 64, "decoder_start_token_id": 0}
    models = {
        "causal": GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(tokenizer), n_positions=256, n_embd=32, n_layer=1, n_head=4, bos_token_id=None, **ids
            )
        ),
        "seq2seq": T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), **shape, **ids)),
    }
    for name, model in models.items():
        for parameter in model.parameters():  # far enough apart that rounding decides nothing
            parameter.data.mul_(4)
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        models[name] = folder
    return models.__getitem__


@pytest.fixture
def prompts(write_rows: Write) -> Prompts:
    rows = [{"id": str(i), "instruction": text} for i, text in enumerate(QUESTIONS)]
    return survey_prompts(write_rows("prompts.jsonl", rows), lambda line, error, raw: None)


def generate(model: LocalModel, prompts: Prompts, *batches: list[int]) -> list[Any]:
    """The answers to the rows of each batch, by row."""
    work, answers = Generation(model, str(prompts.path)), {}
    for rows in batches:
        keys = [prompts.keys[row].hex() for row in rows]
        task = {"offsets": [prompts.offsets[row] for row in rows], "sizes": [prompts.sizes[row] for row in rows]}
        answers.update(zip(rows, work(json.loads(json.dumps({**task, "keys": keys})))["answers"], strict=True))
    return [answers[row] for row in sorted(answers)]


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_a_batch_answers_as_each_prompt_alone(model_folder: Callable[[str], Path], prompts: Prompts, kind: str):
    model = LocalModel("m", str(model_folder(kind)), max_new_tokens=12)
    together = generate(model, prompts, [0, 1, 2, 3])
    assert together == generate(model, prompts, [1], [3], [0], [2])
    assert len(set(together)) == 4
    assert not any(text.startswith(question) for text, question in zip(together, QUESTIONS, strict=True))


def test_it_answers_as_transformers_does_by_hand(model_folder: Callable[[str], Path], prompts: Prompts):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = model_folder("causal")
    tokenizer, network = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer("Be kind.\nQ: the cat", return_tensors="pt")
    made = network.generate(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, max_new_tokens=7)
    expected = tokenizer.decode(made[0, inputs.input_ids.shape[1] :], skip_special_tokens=True).strip()
    model = LocalModel("m", str(folder), max_new_tokens=7, system="Be kind.", template="Q: {question}")
    assert generate(model, prompts, [0]) == [expected]


def test_sampling_is_by_its_seed(model_folder: Callable[[str], Path], prompts: Prompts):
    def sampled(seed: int, *batches: list[int]) -> list[Any]:
        parameters = {"do_sample": True, "temperature": 2.0}
        model = LocalModel("m", str(model_folder("causal")), parameters=parameters, max_new_tokens=12, seed=seed)
        assert model.decoding_method == "sampling"
        return generate(model, prompts, *batches)

    assert sampled(0, [0, 1], [2, 3]) == sampled(0, [2, 3], [0, 1])  # whatever was generated before
    assert sampled(0, [0, 1]) != sampled(1, [0, 1])


def test_long_prompts_keep_their_end(model_folder: Callable[[str], Path], prompts: Prompts, write_rows: Write):
    model = LocalModel("m", str(model_folder("causal")), max_prompt_tokens=8, max_new_tokens=6)
    rows = [{"id": str(i), "instruction": f"{start} near old stone bridge and a cat"} for i, start in enumerate("ab")]
    long = survey_prompts(write_rows("long.jsonl", rows), lambda line, error, raw: None)
    first, second = generate(model, long, [0, 1])
    assert first == second != ""


def test_a_chat_template_is_used_where_there_is_one_and_it_is_wanted(tokenizer_folder: Path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    prompt = parse_prompt(b'{"id": "1", "instruction": "hi", "input": "there"}')
    model = LocalModel("m", "x", system="S", template="<{input}>")
    assert prompt_texts(model, tokenizer, [prompt]) == (["S\n<there>"], False)
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}: {{ m.content }}]{% endfor %}>"
    assert prompt_texts(model, tokenizer, [prompt]) == (["[system: S][user: <there>]>"], True)
    assert prompt_texts(LocalModel("m", "x", chat=False), tokenizer, [prompt]) == (["hi\nthere"], False)


def test_one_prompt_that_fails_does_not_take_its_batch_along(model_folder: Callable[[str], Path], prompts: Prompts):
    model = LocalModel("m", str(model_folder("causal")), max_new_tokens=240)  # 256 positions in all
    answers = generate(model, prompts, [0, 1, 2])
    assert isinstance(answers[0], str)
    assert isinstance(answers[2], str)
    assert answers[1]["reason"] == "generation"
    assert "m failed to generate" in answers[1]["message"]


def test_a_chat_template_that_refuses_a_prompt_is_a_reason(
    model_folder: Callable[[str], Path], prompts: Prompts, tmp_path: Path
):
    import shutil

    folder = Path(shutil.copytree(model_folder("causal"), tmp_path / "chat"))
    refusal = "{% if 'mat' in messages[0].content %}{{ raise_exception('no mats here') }}{% endif %}"
    (folder / "chat_template.jinja").write_text(refusal + "{{ messages[0].content }}")
    answers = generate(LocalModel("m", str(folder), max_new_tokens=4), prompts, [0, 1, 2, 3])
    assert [isinstance(answer, str) for answer in answers] == [True, True, False, False]
    assert answers[2] == {"reason": "generation", "message": "m failed to generate (no mats here)"}


def test_what_leaves_the_device_broken_ends_the_actor(
    model_folder: Callable[[str], Path], prompts: Prompts, monkeypatch: pytest.MonkeyPatch
):
    def broken(*_: object) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(Generation, "_generate", broken)
    with pytest.raises(RuntimeError, match="device-side assert"):
        generate(LocalModel("m", str(model_folder("causal"))), prompts, [0, 1])


def test_a_folder_that_cannot_be_loaded_is_a_reason(tmp_path: Path, prompts: Prompts):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    answers = generate(LocalModel("m", str(tmp_path)), prompts, [0, 1])
    assert [answer["reason"] for answer in answers] == ["not_loaded"] * 2
    assert f"m cannot be loaded from {tmp_path}" in answers[0]["message"]


def test_a_path_is_seen_to_before_anything_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for path in (str(tmp_path / "absent"), "./absent", "a/b/c"):
        with pytest.raises(UserError, match="There is no folder"):
            resolve_path(LocalModel("m", path))
    with pytest.raises(UserError, match="no model folder"):
        resolve_path(LocalModel("m", str(tmp_path)))
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "config.json").touch()
    monkeypatch.chdir(tmp_path)
    assert resolve_path(LocalModel("m", "here")).path == str(tmp_path / "here")
    assert resolve_path(LocalModel("m", "org/name")).path == "org/name"


def test_prompts_that_changed_are_noticed(model_folder: Callable[[str], Path], prompts: Prompts):
    prompts.path.write_text(prompts.path.read_text().replace("cat", "dog"))
    with pytest.raises(UserError, match="was changed"):
        generate(LocalModel("m", str(model_folder("causal"))), prompts, [0])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_on_ray_from_prompts_to_rows_and_only_what_is_missing(
    ray_started: None, model_folder: Callable[[str], Path], prompts: Prompts, tmp_path: Path
):
    causal = {"name": "causal", "path": str(model_folder("causal")), "max_new_tokens": 6, "batch_size": 2}
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    broken = {"name": "broken", "path": str(tmp_path / "broken")}
    config = CollectConfig([causal, broken], str(prompts.path), str(tmp_path / "out"))
    rows = collect(config).read_text().splitlines()
    expected = generate(LocalModel("causal", str(model_folder("causal")), max_new_tokens=6), prompts, [0, 1, 2, 3])
    for row, text in zip(map(json.loads, rows), expected, strict=True):
        assert row["candidates"] == [{"model": "causal", "text": text, "decoding_method": "greedy", "scores": {}}]
    counts = json.loads((tmp_path / "out" / "manifest.json").read_text())["models"]
    assert counts["broken"]["missing"] == {"not_loaded": 4}
    (journal,) = (tmp_path / "out" / "journal").glob("causal-*")
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(lines[0] + lines[1][:9])
    assert collect(replace(config, models=[causal])).read_text().splitlines() == rows
    assert journal.read_bytes().startswith(lines[0])
    assert len(journal.read_bytes().splitlines()) == 4
    greedy = {"name": "big", "path": causal["path"], "num_gpus": 99}
    with pytest.raises(UserError, match="One actor of big asks for 99 GPU, but there are 0"):
        collect(CollectConfig([greedy], str(prompts.path), str(tmp_path / "gpu")))


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(300)
def test_a_prompt_that_kills_its_process_is_missing_and_all_others_are_answered(
    ray_started: None,
    model_folder: Callable[[str], Path],
    prompts: Prompts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    class Fatal(Generation):
        def _generate(self, loaded: Any, prompts: Any) -> list[str]:
            if any("12 dogs" in prompt.example.instruction for prompt in prompts):  # the longest, so the first
                os._exit(1)
            return super()._generate(loaded, prompts)

    monkeypatch.setattr(generation, "Generation", Fatal)
    entry = {"name": "m", "path": str(model_folder("causal")), "max_new_tokens": 6, "batch_size": 2, "actors": 2}
    out = collect(CollectConfig([entry], str(prompts.path), str(tmp_path / "out"))).parent
    counts = json.loads((out / "manifest.json").read_text())["models"]["m"]
    assert (counts["answered"], counts["missing"]) == (3, {"actor_died": 1})
    assert "a process of m died while it answered" in counts["examples"]["actor_died"]
    assert [json.loads(line)["id"] for line in (out / "rows.jsonl").read_text().splitlines()] == ["0", "2", "3"]


SLOWLY = """
import json, sys, time
from data_pipeline.collect import main
from data_pipeline.collection import generation
from data_pipeline.collection.config import CollectConfig

model, prompts, output, begun = sys.argv[1:]

class Told(generation.Generation):
    def __call__(self, task):
        with open(begun, "a") as file:
            print(*task["keys"], file=file)
        time.sleep(0.2)
        return super().__call__(task)

generation.Generation = Told
main(CollectConfig([{"name": "m", "path": model, "max_new_tokens": 4, "batch_size": 2}], prompts, output))
"""


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(300)
def test_no_batch_that_was_finished_when_the_run_was_killed_is_generated_again(
    model_folder: Callable[[str], Path], write_rows: Write, tmp_path: Path
):
    path = write_rows("many.jsonl", [{"id": str(i), "instruction": f"the cat {'sat ' * i}"} for i in range(24)])
    out, begun = tmp_path / "out", tmp_path / "begun"
    command = [sys.executable, "-c", SLOWLY, str(model_folder("causal")), str(path), str(out), str(begun)]
    environment: Mapping[str, str] = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[3]),
        "RAY_ADDRESS": "local",
    }

    def batches() -> list[str]:
        return begun.read_text().splitlines() if begun.exists() else []

    with subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL) as process:
        while len(batches()) < 4:
            assert process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    before = batches()
    assert 4 <= len(before) < 12
    (journal,) = (out / "journal").iterdir()
    assert len(journal.read_bytes().splitlines()) >= 2 * (len(before) - 1)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    again = {key for batch in batches()[len(before) :] for key in batch.split()}
    assert not again & {key for batch in before[:-1] for key in batch.split()}
    assert len(journal.read_bytes().splitlines()) == 24 == len((out / "rows.jsonl").read_text().splitlines())
