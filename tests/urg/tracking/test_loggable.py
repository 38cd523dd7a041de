import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from urg.tracking.loggable import NAME_LIMIT, clean_name, clean_number, clean_text, flatten, has_login, redact


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("http://ann:hunter2@host:5000/x", "http://***@host:5000/x"),
        ("postgresql+psycopg2://ann:p@ss:w@rd@db/mlflow", "postgresql+psycopg2://***@db/mlflow"),
        ("failed at https://token@host/api, retry", "failed at https://***@host/api, retry"),
        ("mssql://db/x?user=ann&password=hunter2&timeout=3", "mssql://db/x?user=ann&password=***&timeout=3"),
        ("sqlite:////tmp/a@b/mlflow.db", "sqlite:////tmp/a@b/mlflow.db"),
        ("http://127.0.0.1:5000 and me@example.org", "http://127.0.0.1:5000 and me@example.org"),
    ],
)
def test_redact_hides_logins_and_nothing_else(text, safe):
    assert redact(text) == safe


@pytest.mark.parametrize(
    "uri",
    [
        "http://ann:hunter2@host:5000",
        "https://token@host",
        "HTTPS://ann:p@ss@host",
        "http://ann:p#ss@host",
        "postgresql://ann:p/ss@db/mlflow",
        "mysql+pymysql://:hunter2@db/mlflow",
        "postgresql:///mlflow?host=db&user=ann&password=hunter2",
    ],
)
def test_a_login_in_a_uri_is_seen(uri):
    assert has_login(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "http://mlflow:5000",
        "https://host/api?version=2",
        "http://host:5000/a@b",
        "postgresql://ann@db:5432/mlflow",  # its password comes from PGPASSWORD or ~/.pgpass
        "sqlite:////tmp/a:b@c/mlflow.db",
        "databricks://profile",
        "off",
    ],
)
def test_a_uri_without_a_secret_has_no_login(uri):
    assert not has_login(uri)


@pytest.mark.parametrize("name", ["password", "storage.secret_key", "mlflow.token", "API_KEY"])
def test_value_of_a_secret_name_is_hidden(name):
    assert clean_text(name, "hunter2", 100) == "***"
    assert clean_text(name, None, 100) == "None"


@pytest.mark.parametrize("name", ["tokenizer", "max_new_tokens", "lengths.target_tokens", "data.key"])
def test_names_that_only_look_secret_are_kept(name):
    assert clean_text(name, 128, 100) == "128"


def test_long_text_is_cut_and_says_so():
    cut = clean_text("prompt", "x" * 10_000, 6000)
    assert len(cut) == 6000
    assert cut.endswith("[cut: 10000 characters]")


@given(st.text(min_size=1, max_size=400))
def test_every_name_becomes_one_that_mlflow_accepts(name):
    from mlflow.utils.validation import _validate_metric_name

    clean = clean_name(name)
    assert 0 < len(clean) <= NAME_LIMIT
    _validate_metric_name(clean)
    assert clean_name(clean) == clean


def test_names_stay_readable_and_distinct():
    assert clean_name("hit@1") == "hit_at_1"
    assert clean_name("dev/urg_rank/rouge-L") == "dev/urg_rank/rouge-L"
    assert len({clean_name("a(b)"), clean_name("a[b]"), clean_name("a_b_")}) == 3


@pytest.mark.parametrize("value", [1.5, 1, True, np.float32(1.5), np.int64(2), np.array(1.5)])
def test_numbers_of_any_kind_become_floats(value):
    assert clean_number("loss", value) == float(value)


def test_infinite_becomes_nan():
    assert math.isnan(clean_number("loss", math.inf))
    assert math.isnan(clean_number("loss", math.nan))


@pytest.mark.parametrize("value", ["1.5", None, [1.0, 2.0], np.zeros(3)])
def test_what_is_no_number_is_refused_by_name(value):
    with pytest.raises(TypeError, match="'loss' is"):
        clean_number("loss", value)


def test_flatten_nested_mappings_and_dataclasses():
    @dataclass(frozen=True)
    class Loss:
        tau: float = 0.5

    assert dict(flatten({"loss": Loss(), "optim": {"lr": 1, "betas": (0.9, 0.99)}, "seed": 3})) == {
        "loss.tau": 0.5,
        "optim.lr": 1,
        "optim.betas": (0.9, 0.99),
        "seed": 3,
    }
