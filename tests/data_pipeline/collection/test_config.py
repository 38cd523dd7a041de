from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.collection.config import load_models
from data_pipeline.errors import UserError
from data_pipeline.models import Endpoint, LocalModel, model_key

SECRET = "sk-Very-secret"
API = {"name": "a", "base_url": "http://127.0.0.1:1/v1", "model": "x"}
LOCAL = {"name": "b", "path": "folder"}


def test_entries_become_what_their_keys_say(tmp_path: Path):
    path = tmp_path / "models.yaml"
    text = "- name: a\n  base_url: https://host/v1\n  model: x\n  parameters: {temperature: 0.5, stop: ['.']}\n"
    text += "- {name: b, path: folder, num_gpus: 0.5}\n"
    expected = [
        Endpoint("a", "https://host/v1", "x", parameters={"temperature": 0.5, "stop": ["."]}),
        LocalModel("b", "folder", num_gpus=0.5),
    ]
    path.write_text(text)
    assert load_models(str(path)) == expected
    path.write_text("models:\n" + text)
    assert load_models(str(path)) == expected


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ([], "empty list"),
        ([API, {**LOCAL, "name": "a"}], "2 models have the name a"),
        ([{"name": "a"}], "either base_url .* or path"),
        ([{**API, **LOCAL}], "either base_url .* or path"),
        ([{**API, "api_key": SECRET}], "api_key_env"),
        ([{**API, "apikey": SECRET}], "apikey"),
        ([{**API, "concurency": 3}], r"model 1 of the list \(a\): .*concurency"),
        ([API, {**LOCAL, "concurrency": 3}], r"model 2 of the list \(b\): .*concurrency"),
        ([{**API, "max_tokens": 9}], r"model 1 of the list \(a\): max_tokens is none .*base_url.* below parameters"),
        ([{**API, "concurrency": "many"}], "concurrency"),
        ([{**API, "parameters": ["x"]}], "parameters"),
        ([{"name": "a", "base_url": "http://host/v1"}], "model"),
        ([{"name": 5, **LOCAL, "path": 7}], "path"),
        (["gpt-4"], "not an object"),
        ([{**LOCAL, "batch_size": 0}], "batch_size of b"),
        ([{**LOCAL, "num_gpus": -1}], "num_gpus of b"),
        ([{**LOCAL, "dtype": "int8"}], "dtype of b"),
        ([{**LOCAL, "path": ""}], "path of b"),
        ([{**LOCAL, "template": "x"}], "template of b"),
    ],
)
def test_what_is_wrong_with_an_entry_is_said(models: list[Any], said: str):
    with pytest.raises(UserError, match=said) as caught:
        load_models(models)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (f"- name: a\n  key: '{SECRET}\n".encode(), "is not YAML .line 3"),
        (b"- a: [\n", "is not YAML"),
        (b"\xff\xfe\x00", "not UTF-8|not YAML"),
        (b"", "holds no list"),
        (b"just text", "holds no list"),
        (b"models: 3\n", "holds no list"),
        (b"models: []\nother: 1\n", "holds no list"),
        (b"[]", "empty list"),
        (b"- !!python/object/apply:os.getcwd []\n", "is not YAML"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, content: bytes, said: str):
    path = tmp_path / "models.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        load_models(str(path))
    assert SECRET not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(UserError, match=r"absent.yaml cannot be read"):
        load_models(str(tmp_path / "absent.yaml"))


def test_a_models_key_is_of_what_decides_its_answers():
    endpoint, local = Endpoint(**API), LocalModel(**LOCAL)
    same = [replace(endpoint, name="z"), replace(endpoint, concurrency=9, retries=0, api_key_env="KEY", timeout_s=1.0)]
    assert {model_key(each) for each in same} == {model_key(endpoint)}
    assert model_key(replace(local, batch_size=1, num_gpus=1.0)) == model_key(local)
    changed = [
        *(replace(endpoint, **{name: "{input}"}) for name in ("model", "system", "template")),
        replace(endpoint, base_url="http://other/v1"),
        replace(endpoint, parameters={"temperature": 1}),
        *(replace(local, **change) for change in ({"path": "x"}, {"seed": 1}, {"max_new_tokens": 3}, {"chat": False})),
        local,
    ]
    assert len({model_key(each) for each in [endpoint, *changed]}) == len(changed) + 1
