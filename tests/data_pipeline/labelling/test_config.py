from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_pipeline.cli import parse_config
from data_pipeline.errors import UserError
from data_pipeline.labelling.config import LabelConfig
from data_pipeline.models import Endpoint, fill


def config(metrics: str | list[str], **changes: Any) -> LabelConfig:
    return LabelConfig("rows.jsonl", "labelled", metrics, **changes)


@pytest.mark.parametrize(
    ("metrics", "changes", "message"),
    [
        ("bertscor", {}, "no metric bertscor; choose from"),
        ("", {}, "name at least one of rouge"),
        ("bleurt", {}, r"bleurt needs a model; .* by --models\.bleurt"),
        ("bleu", {"models": {"bleu": "x"}}, "models has bleu, which takes none"),
        ("bleu", {"models": {"blurt": "x"}}, "models has blurt"),
        ("bertscore", {"weights": {"bertscore": "x"}}, "weights has bertscore"),
        ("judge", {}, "judge needs an endpoint"),
        ("bleu", {"actors": 0}, "actors is 0; give 1 or more"),
        ("bleu", {"rows_per_shard": 0}, "rows_per_shard is 0"),
        ("bleu", {"batch_tokens": 0}, "batch_tokens is 0"),
        ("bleu", {"num_gpus": -0.5}, "num_gpus is -0.5"),
        ("bleu", {"num_gpus": 1.5}, "num_gpus is 1.5; above 1 give a whole number"),
        ("bleu", {"cpus_per_actor": 0.0}, "cpus_per_actor is 0.0"),
        ("bleu", {"dtype": "int8"}, "dtype is int8; choose from float32"),
        ("bleu", {"judge_template": "{first} or {second}?"}, r"judge_template has no \{question\}"),
    ],
)
def test_bad_settings_are_refused_with_the_mend(metrics: str, changes: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        config(metrics, **changes)


def test_metrics_as_text_or_list():
    assert config("bleu, rougeL,").fields() == config(["bleu", "rougeL"]).fields() == {
        "rouge": ("rougeL",),
        "bleu": ("bleu",),
    }  # fmt: skip
    judge = Endpoint(name="j", base_url="http://localhost:1/v1", model="m")
    assert config("judge", judge=judge).fields() == {}
    assert config("judge", judge=judge).judges


def test_models_device_and_defaults():
    models = config("bartscore,bertscore", models={"bertscore": "own"}, num_gpus=0.5, dtype="bfloat16").metric_models()
    assert (models["bertscore"].name, models["bartscore"].name) == ("own", "facebook/bart-large-cnn")
    assert {(model.device, model.dtype) for model in models.values()} == {("cuda", "bfloat16")}
    assert config("bartscore").metric_models()["bartscore"].device == "cpu"


def test_the_command_line_reaches_models_and_judge():
    words = "--input a --output b --metrics bleurt,judge --models.bleurt folder --judge.name j --judge.model m"
    words += " --judge.base_url http://localhost:1/v1 --judge.parameters.temperature 0 --num_gpus 0.25 --overwrite"
    parsed = parse_config(LabelConfig, argv=words.split())
    assert parsed.models == {"bleurt": "folder"}
    assert parsed.judge is not None
    assert parsed.judge.parameters == {"temperature": 0}
    assert (parsed.num_gpus, parsed.overwrite) == (0.25, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--judge.base_url http://h/v1 --judge.api_key_env sk-Secret123", "api_key_env of j is not the name of"),
        ("--judge.base_url http://me:Secret123@h/v1", "base_url of j is not of the form https://host/path"),
        ("--judge.base_url http://h/v1 --judge.concurrency 0", "concurrency of j is 0; give 1 or more."),
        (
            "--judge.base_url http://h/Secret123 --judge.concurrency many",
            "judge.concurrency is many; give a whole number.",
        ),
        ("--judge.system Secret123", "judge: the following arguments are required: base_url"),
        ("--judge.sytem Secret123", "judge: Option 'sytem' is not accepted"),
        ("--config judge.yaml", "--config judge.yaml: judge.retries is many; give a whole number."),
    ],
)
def test_what_is_wrong_with_the_judge_is_told_without_its_secrets(
    words: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    Path("judge.yaml").write_text("judge: {name: j, model: m, base_url: 'http://h/Secret123', retries: many}\n")
    given = "--input a --output b --metrics judge"
    given += "" if "config" in words else " --judge.name j --judge.model m"
    with pytest.raises(SystemExit):
        parse_config(LabelConfig, argv=f"{given} {words}".split())
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {said}")
    assert "Secret123" not in line


def test_places_within_the_texts_are_left_alone():
    assert fill("{question}: {first}|{second} {x}", {"question": "{first}", "first": "a", "second": "{question}"}) == (
        "{first}: a|{question} {x}"
    )
