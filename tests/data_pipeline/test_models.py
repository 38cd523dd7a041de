from __future__ import annotations

from typing import Any

import pytest

from data_pipeline.errors import UserError
from data_pipeline.models import Endpoint, fill_template

GOOD: dict[str, Any] = {"name": "m", "base_url": "http://127.0.0.1:1/v1", "model": "m-1"}
SECRET = "sk-Very-secret"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": " "}, "name is"),
        ({"name": "a,b"}, "without a comma"),
        ({"base_url": "api.openai.com/v1"}, "base_url of m"),
        ({"base_url": "ftp://host/v1"}, "base_url of m"),
        ({"base_url": "http://[::1/v1"}, "base_url of m"),
        ({"base_url": "http://host:99999/v1"}, "base_url of m"),
        ({"base_url": f"https://me:{SECRET}@host/v1"}, "no login"),
        ({"base_url": f"https://host/v1?key={SECRET}"}, "no login"),
        ({"base_url": "https://host/v1/chat/completions/"}, "ends with /chat/completions"),
        ({"model": ""}, "model of m"),
        ({"api_key_env": SECRET}, "never the key itself"),
        ({"template": "Answer this."}, "template of m"),
        ({"parameters": {"stream": True}}, "stream"),
        ({"parameters": {"seed": float("nan")}}, "JSON"),
        ({"parameters": {"seed": {1}}}, "JSON"),
        ({"requests_per_minute": 0}, "requests_per_minute of m"),
        ({"concurrency": 0}, "concurrency of m"),
        ({"timeout_s": -1}, "timeout_s of m"),
        ({"retries": -1}, "retries of m"),
        ({"give_up_after": 0}, "give_up_after of m"),
    ],
)
def test_what_cannot_work_is_refused_without_showing_a_key(change: dict[str, Any], said: str):
    with pytest.raises(UserError, match=said) as caught:
        Endpoint(**{**GOOD, **change})
    assert SECRET not in str(caught.value)


def test_messages_fill_the_template_once():
    plain = Endpoint(**GOOD)
    assert plain.messages("Do {input} now", "x") == [{"role": "user", "content": "Do {input} now\nx"}]
    assert plain.messages("", "only input")[0]["content"] == "only input"
    both = Endpoint(**GOOD, system="Be brief.", template="### {instruction}\n>{input}< {other}")
    assert both.messages("{input}", "b") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "### {input}\n>b< {other}"},
    ]
    assert fill_template("{question}|{question}", "a") == "a|a"
