"""The search space: what it refuses, and that whatever it draws lies in it."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import UserError
from tuning.space import Space

optuna.logging.set_verbosity(optuna.logging.WARNING)

KINDS = {"model.k": int, "loss.tau": float, "loss.gamma": float, "loss.rank_loss": object, "loss.second_ce": bool}
CONDITIONAL = {
    "loss.gamma": [
        {"low": 1, "high": 10, "when": {"loss.rank_loss": "hinge"}},
        {"low": 0.3, "high": 3, "log": True, "when": {"loss.rank_loss": ["listnet", "listmle"]}},
    ],
    "loss.rank_loss": {"choices": ["hinge", "listnet", "listmle"]},
    "loss.tau": {"low": 0.5, "high": 2, "step": 0.5, "when": {"loss.rank_loss": "listnet"}},
    "model.k": {"low": 1, "high": 5, "step": 2},
}


def parse(space: dict[str, Any]) -> Space:
    def kind_of(key: str) -> type:
        if key not in KINDS:
            raise UserError(f"the space names {key}")
        return KINDS[key]

    return Space.parse(space, kind_of)


def sample(space: Space, seed: int) -> dict[str, Any]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return space.suggest(study.ask())


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 10**6))
def test_what_is_drawn_is_inside_and_conditions_hold(seed: int) -> None:
    point = sample(parse(CONDITIONAL), seed)
    assert point["model.k"] in (1, 3, 5)
    assert isinstance(point["model.k"], int)
    loss, gamma = point["loss.rank_loss"], point["loss.gamma"]
    assert (1 <= gamma <= 10) if loss == "hinge" else (0.3 <= gamma <= 3)
    assert ("loss.tau" in point) == (loss == "listnet")
    assert point.get("loss.tau", 1.0) in (0.5, 1.0, 1.5, 2.0)


def test_the_grid_is_every_combination_once() -> None:
    space = parse(CONDITIONAL | {"loss.gamma": {"choices": [1.0, 5.0]}})
    grid = space.grid()
    assert len(grid) == 3 * 2 * (1 + 1 + 4)
    assert len({tuple(sorted(point.items())) for point in grid}) == len(grid)
    assert [d.key for d in space.dimensions].index("loss.rank_loss") < [d.key for d in space.dimensions].index(
        "loss.tau"
    )


def test_the_bases_point_has_the_names_that_optuna_knows() -> None:
    base = {"model.k": 3, "loss.gamma": 5.0, "loss.rank_loss": "hinge", "loss.tau": 9.0}
    point = parse(CONDITIONAL).base_point(base.__getitem__)  # tau 9 is outside, but not asked for under hinge
    assert point == {"model.k": 3, "loss.gamma [loss.rank_loss=hinge]": 5.0, "loss.rank_loss": "hinge"}
    study = optuna.create_study()
    study.enqueue_trial(point)
    drawn = parse(CONDITIONAL).suggest(study.ask())
    assert drawn == {"model.k": 3, "loss.gamma": 5.0, "loss.rank_loss": "hinge"}


def test_a_base_outside_of_the_space_is_refused() -> None:
    with pytest.raises(UserError, match=r"model.k does not hold the base's own value 4.*base_first"):
        parse({"model.k": {"low": 1, "high": 5, "step": 2}}).base_point(lambda key: 4)


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        ({"loss.gama": {"low": 1, "high": 2}}, "loss.gama"),
        ({"loss.tau": 3}, "give {low, high} or {choices}"),
        ({"loss.tau": {"low": 2, "high": 1}}, "low 2.0 must be less than high 1.0"),
        ({"loss.tau": {"low": 0, "high": 1, "log": True}}, "log range needs a low above 0"),
        ({"loss.tau": {"low": "x", "high": 1}}, "low='x' must be a number"),
        ({"loss.tau": {"low": 1, "hi": 2}}, "unknown part 'hi'"),
        ({"loss.tau": {"low": 1}}, "high=None must be a number"),
        ({"loss.tau": {"low": 1, "high": 2, "step": 3}}, "step 3.0 must be positive, no more than the range"),
        ({"loss.tau": {"low": 1, "high": float("inf")}}, "finite"),
        ({"model.k": {"low": 1, "high": 2.5}}, "whole number"),
        ({"loss.rank_loss": {"choices": []}}, "must be a list of values"),
        ({"loss.rank_loss": {"choices": ["a", "a"]}}, "a value twice"),
        ({"loss.rank_loss": {"choices": [["a"]]}}, "plain values"),
        ({"loss.tau": {"low": 1, "high": 2, "when": {"model.k": 1}}}, "which the space does not have"),
        (
            {"loss.tau": {"low": 1, "high": 2, "when": {"model.k": [2, 5]}}, "model.k": {"low": 1, "high": 3}},
            r"space loss\.tau.*: model\.k never is 5",
        ),
        (
            {
                "loss.tau": {"low": 1, "high": 2, "when": {"model.k": 1}},
                "model.k": {"low": 1, "high": 2, "when": {"loss.tau": 1}},
            },
            "in a circle",
        ),
        ({"loss.tau": [{"low": 1, "high": 2}, {"low": 2, "high": 3}]}, "two ranges for the same case"),
    ],
)
def test_what_cannot_be_searched_is_named(space: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        parse(space)


def test_a_grid_needs_steps() -> None:
    with pytest.raises(UserError, match=r"loss.tau: a grid needs choices, or a step"):
        parse({"loss.tau": {"low": 1, "high": 2}}).grid()


def test_yaml_that_reads_an_exponent_as_text_is_understood() -> None:
    (dimension,) = parse({"loss.tau": {"low": "1e-4", "high": "1e-2", "log": True}}).dimensions
    assert (dimension.low, dimension.high) == (1e-4, 1e-2)
