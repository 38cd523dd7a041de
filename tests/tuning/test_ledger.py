"""The durable account: nothing lost, doubled or repeated, wherever a session is cut off. No Ray, no training."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import UserError
from tests.tuning.session import Killed, Session
from tuning.blueprint import draw_up, trial_name
from tuning.config import SchedulerConfig, SweepConfig
from tuning.finish import drop_checkpoints
from tuning.ledger import Ledger, Outcome, earlier_outcomes, read_outcome, together
from tuning.retry import reopen_failed
from tuning.tracking import SETTLED
from tuning.trial import ENDED, NEVER, SESSIONS, counted, elapsed, reason_of
from urg.training.evaluations import Evaluation

Make = Callable[..., SweepConfig]


@pytest.mark.parametrize(("seed", "folds"), [(0, None), (2, 2)])
def test_whenever_it_is_cut_off_every_trial_ends_once(make_sweep: Make, seed: int, folds: int | None) -> None:
    scheduler = SchedulerConfig() if folds else SchedulerConfig("asha", grace=2, reduction=2)
    config = make_sweep(scheduler=scheduler, folds=folds, trials=7)
    dice, settled, runs, sessions = random.Random(seed), list[int](), Counter[str](), 0
    while True:
        session = Session(config, dice.randint(1, 20), settled, runs)
        sessions += 1
        try:
            session.play()
        except Killed:
            continue
        break
    trials = session.ledger.study.get_trials()
    names = {unit.name for number in range(7) for unit in session.ledger.blueprint.units(number)}
    assert sessions > 1
    assert [trial.number for trial in trials] == list(range(7))
    assert all(trial.state.is_finished() for trial in trials)
    assert sorted(settled) == list(range(7))
    assert set(runs) == names
    assert max(runs.values()) <= 2  # the second time only looks at the outcome, or writes it
    assert trials[0].params["optim.lr"] == 0.0015  # the base's point
    assert len({trial.params["optim.lr"] for trial in trials}) == 7  # no session repeats the draws of another
    if folds is None:
        assert any(trial.state.name == "PRUNED" for trial in trials)


def test_asha_ends_what_lags_behind_but_never_the_base(make_sweep: Make, asha: SchedulerConfig) -> None:
    session = Session(make_sweep(scheduler=asha), math.inf, [], Counter())
    ends = []
    for index, value in enumerate([0.2, 0.9, 0.1]):
        while (settings := session.searcher.suggest(str(index))) is None:
            pass
        run = session.ledger.blueprint.trials_folder / trial_name(index)
        run.mkdir()
        (run / SESSIONS).write_text("0.0\n")
        trial: Any = type("Trial", (), {"config": settings})
        ends.append(session.scheduler.on_trial_result(None, trial, {"step": 2, "objective": value}))
    late = session.scheduler.on_trial_result(
        None, type("Trial", (), {"config": {"number": 0, "fold": None, "point": {}}}), {"step": 4, "objective": 0.0}
    )
    assert [*ends, late] == ["CONTINUE", "CONTINUE", "STOP", "CONTINUE"]
    outcome = read_outcome(run)
    assert outcome is not None
    assert (outcome.state, outcome.values, outcome.step) == ("pruned", [0.1], 2)


def test_a_trial_that_was_cut_off_keeps_its_point(make_sweep: Make) -> None:
    blueprint = draw_up(make_sweep(base_first=False))
    blueprint.folder.mkdir(parents=True)
    first = Ledger.open(blueprint, 4)
    number = first.ask()
    point = first.point(number)
    second = Ledger.open(blueprint, 4)
    assert second.interrupted() == [number]
    assert second.point(number) == point == second.values(number)


def test_a_grid_tries_the_base_first_and_each_point_once(make_sweep: Make) -> None:
    space = {"model.k": {"low": 1, "high": 4}, "loss.rank_loss": {"choices": ["hinge", "listnet"]}}
    runs: Counter[str] = Counter()
    config = make_sweep(space=space | {"optim.lr": {"choices": [0.0015]}}, searcher="grid", trials=None)
    session = Session(config, math.inf, [], runs)
    session.play()
    points = [session.ledger.values(trial.number) for trial in session.ledger.ended()]
    assert points[0] == {"model.k": 3, "loss.rank_loss": "listnet", "optim.lr": 0.0015}
    assert len(points) == len({str(sorted(point.items())) for point in points}) == 8


def test_of_a_grid_the_base_is_no_second_point_where_it_is_written_otherwise(make_sweep: Make) -> None:
    """1.0 in the base, 1 in the space: Optuna takes them for two."""
    config = make_sweep(space={"loss.gamma": {"choices": [1, 2]}}, searcher="grid", overrides={"loss.gamma": 1.0})
    session = Session(dataclasses.replace(config, trials=None), math.inf, [], Counter())
    while session.searcher._begin():
        session.searcher._pending = None
    assert [session.ledger.values(number) for number in session.ledger.interrupted()] == [
        {"loss.gamma": 1},
        {"loss.gamma": 2},
    ]


def test_more_trials_go_on_with_a_finished_sweep_and_time_ends_one(make_sweep: Make) -> None:
    runs: Counter[str] = Counter()
    Session(make_sweep(trials=2), math.inf, [], runs).play()
    session = Session(make_sweep(trials=4), math.inf, [], runs)
    session.play()
    assert len(session.ledger.ended()) == 4
    assert set(runs.values()) == {1}
    session.ledger.add_seconds(7200)
    late = Session(make_sweep(trials=9, hours=2.0), math.inf, [], runs)
    late.play()
    assert len(late.ledger.ended()) == 4


@pytest.mark.parametrize("searcher", ["cmaes", "tpe", "random"])
def test_every_searcher_draws_conditional_points(make_sweep: Make, searcher: str) -> None:
    gamma = {"low": 1.0, "high": 5.0, "when": {"loss.rank_loss": "hinge"}}
    space = {"loss.rank_loss": {"choices": ["hinge", "listnet"]}, "loss.gamma": gamma}
    space |= {"optim.lr": {"low": 1e-4, "high": 1e-1, "log": True}, "loss.tau": {"low": 0.5, "high": 4.0}}
    session = Session(make_sweep(space=space, searcher=searcher, trials=9), math.inf, [], Counter())
    session.play()
    points = [session.ledger.values(trial.number) for trial in session.ledger.ended()]
    assert len(points) == 9
    assert all(("loss.gamma" in point) == (point["loss.rank_loss"] == "hinge") for point in points)


def test_a_lost_process_and_an_objective_without_value_end_as_failed(make_sweep: Make) -> None:
    session = Session(make_sweep(), math.inf, [], Counter())
    for tune_id in "ab":
        while session.searcher.suggest(tune_id) is None:
            pass
    session.searcher.on_trial_complete("a", error=True)
    never = counted([Evaluation(2, 0.0, {"hit@1": 1.0})], ["label"])
    never.write(session.ledger.blueprint.trials_folder / trial_name(1))
    session.searcher.on_trial_complete("b", {})
    states = [(trial.state.name, trial.user_attrs["reason"]) for trial in session.ledger.ended()]
    assert states[0][0] == states[1][0] == "FAIL"
    assert "process was lost" in states[0][1]
    assert states[1][1].startswith(NEVER)
    assert "the dev split gave hit@1" in str(session.searcher.refusal)
    assert session.searcher.suggest("c") == "FINISHED"


def _end_next(session: Session, outcome: Outcome) -> int:
    """Let the searcher begin a run and end it."""
    while (settings := session.searcher.suggest("t")) is None:
        pass
    outcome.write(session.ledger.blueprint.trials_folder / trial_name(settings["number"]))
    session.searcher.on_trial_complete("t", {}, error=outcome.state == "failed")
    return int(settings["number"])


def test_where_the_bases_own_point_fails_the_sweep_ends_until_it_is_retried(make_sweep: Make) -> None:
    runs: Counter[str] = Counter()
    session = Session(make_sweep(trials=3), math.inf, [], runs)
    assert _end_next(session, Outcome("failed", reason="the hub is away.")) == 0
    again = Session(make_sweep(trials=3), math.inf, [], runs)
    for refused in (session, again):
        assert "trial 0, failed (the hub is away): the sweep ends here" in str(refused.searcher.refusal)
        assert refused.searcher.suggest("x") == "FINISHED"
    assert reopen_failed(again.ledger.blueprint) == [0]
    mended = Session(make_sweep(trials=3), math.inf, [], runs)
    mended.play()
    assert runs == {trial_name(number): 1 for number in range(3)}
    assert [trial.state.name for trial in mended.ledger.study.get_trials()] == ["COMPLETE"] * 3


@pytest.mark.parametrize("first", [0, 1])
def test_a_base_that_fails_beside_another_that_finishes_does_not_end_the_sweep(
    first: int, make_sweep: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whichever of the two ends first. Until the other has ended nothing new begins; the next session goes on too."""
    config = make_sweep(trials=4)
    session, ends = Session(config, math.inf, [], Counter()), [Outcome("failed", reason="no room."), GOOD]
    for tune_id in "01":
        while session.searcher.suggest(tune_id) is None:
            pass
    for number in (first, 1 - first):
        ends[number].write(session.ledger.blueprint.trials_folder / trial_name(number))
        session.searcher.on_trial_complete(str(number), {}, error=number == 0)
        if number == first == 0:
            assert session.searcher.suggest("x") is None
    assert session.searcher.refusal is None
    assert _end_next(session, GOOD) == 2
    again = Session(config, math.inf, [], Counter())
    assert _end_next(again, GOOD) == 3
    assert again.searcher.suggest("x") == "FINISHED"
    assert again.searcher.refusal is None
    assert capsys.readouterr().out.count("trial 0, failed (no room): the sweep goes on with the others") == 2


GOOD = Outcome("finished", [0.5], 4)


def test_a_failed_trial_is_tried_again_under_its_number_from_where_it_was(make_sweep: Make) -> None:
    """And only that one; its old outcome stands aside, and a second attempt that fails is a third file."""
    config, runs = make_sweep(trials=2), Counter[str]()
    session = Session(config, math.inf, [], runs)
    blueprint = session.ledger.blueprint
    run = blueprint.trials_folder / trial_name(1)
    (run / "checkpoint-00000002-abcdef").mkdir(parents=True)
    first = Outcome("finished", [0.5], 4)
    assert _end_next(session, first) == 0
    assert _end_next(session, Outcome("failed", reason="its node is gone.")) == 1
    drop_checkpoints(blueprint, 1)
    point = session.ledger.values(1)
    (run / SETTLED).touch()
    for attempt in (1, 2):
        assert reopen_failed(blueprint) == [1]
        assert not (run / SETTLED).exists()
        assert earlier_outcomes(run) == attempt
        session = Session(config, math.inf, [], runs)
        assert session.ledger.interrupted() == [1]
        if attempt == 1:
            assert _end_next(session, Outcome("failed", reason="again.")) == 1
    session.play()
    assert reopen_failed(blueprint) == []
    assert runs == {trial_name(1): 1}
    assert session.ledger.values(1) == point
    assert [trial.state.name for trial in session.ledger.study.get_trials()] == ["COMPLETE"] * 2
    assert read_outcome(blueprint.trials_folder / trial_name(0)) == first
    assert (run / "checkpoint-00000002-abcdef").is_dir()
    drop_checkpoints(blueprint, 1)
    assert not (run / "checkpoint-00000002-abcdef").exists()


def test_of_a_failed_trial_only_the_fold_that_failed_is_trained_again(make_sweep: Make) -> None:
    config, runs = make_sweep(trials=1, folds=2, base_first=False), Counter[str]()
    session = Session(config, math.inf, [], runs)
    assert session.ledger.ask() == 0
    session.ledger.point(0)
    for unit, end in zip(session.ledger.blueprint.units(0), ("finished", "failed"), strict=True):
        Outcome(end, [0.5] * (end == "finished")).write(  # type: ignore[arg-type]
            session.ledger.blueprint.trials_folder / unit.name
        )
    outcome = session.ledger.tell(0)
    assert outcome is not None
    assert outcome.state == "failed"
    assert reopen_failed(session.ledger.blueprint) == [0]
    Session(config, math.inf, [], runs).play()
    assert runs == {"trial-0000-fold-1": 1}


def test_the_outcome_of_a_run_on_another_node_is_known_before_its_file_is_seen(make_sweep: Make) -> None:
    """And Tune does not start a run again that has failed for good."""
    session = Session(make_sweep(), math.inf, [], Counter())
    while (settings := session.searcher.suggest("t")) is None:
        pass
    trial: Any = type("Trial", (), {"config": settings, "max_failures": 3})
    outcome = Outcome("failed", reason="the hub is away.", seconds=4.0)
    last = {ENDED: json.dumps(dataclasses.asdict(outcome)), "step": 0, "objective": math.nan}
    assert session.scheduler.on_trial_result(None, trial, last) == "CONTINUE"
    assert trial.max_failures == 0
    session.searcher.on_trial_complete("t", error=True)
    assert read_outcome(session.ledger.blueprint.trials_folder / trial_name(0)) == outcome
    assert session.ledger.ended()[0].user_attrs["reason"] == outcome.reason


def test_a_run_that_was_stopped_stays_open(make_sweep: Make) -> None:
    session = Session(make_sweep(), math.inf, [], Counter())
    while (settings := session.searcher.suggest("t")) is None:
        pass
    assert session.searcher.stop() == [session.ledger.blueprint.trials_folder / trial_name(0)]
    trial: Any = type("Trial", (), {"config": settings, "max_failures": 3})
    session.scheduler.on_trial_result(None, trial, {ENDED: "null", "step": 0, "objective": math.nan})
    session.searcher.on_trial_complete("t", {})
    assert session.searcher.stop() == []
    assert session.searcher.suggest("u") == "FINISHED"
    assert session.searcher.close() == [0]


def test_a_kill_between_a_value_and_its_outcome_spares_no_trial(make_sweep: Make, asha: SchedulerConfig) -> None:
    """The next session hears the same value again, and ends the trial by it; a value of a rung before it does not."""
    session = Session(make_sweep(scheduler=asha), math.inf, [], Counter())
    ledger = session.ledger
    for value in (0.2, 0.9, 0.1):
        ledger.point(number := ledger.ask())
        assert ledger.report(number, 2, value) == (value == 0.1)
    after = Ledger.open(ledger.blueprint, 8)
    assert [after.report(number, 2, value) for number, value in enumerate((0.2, 0.9, 0.1))] == [False, False, True]
    assert not after.report(1, 4, 0.9)
    assert not after.report(1, 2, 0.9)


def test_an_interrupted_tune_leaves_its_trials_open(make_sweep: Make) -> None:
    session = Session(make_sweep(), math.inf, [], Counter())
    while session.searcher.suggest("a") is None:
        pass
    session.searcher.on_trial_complete("a", {"step": 2})
    assert session.searcher.close() == [0]


@pytest.mark.parametrize(
    ("metrics", "state", "reason"),
    [
        ([{"label": 0.2, "rougeL": 0.9}, {"label": 0.4, "rougeL": 0.1}], "finished", ""),
        ([{"label": math.nan, "rougeL": 0.1}], "failed", "label is not finite"),
        ([{"rougeL": 0.1}], "failed", NEVER),
        ([], "failed", "without an evaluation"),
    ],
)
def test_what_a_run_counts(metrics: list[dict[str, float]], state: str, reason: str) -> None:
    outcome = counted([Evaluation(i + 1, 0.0, values) for i, values in enumerate(metrics)], ["label", "rougeL"])
    assert outcome.state == state
    assert reason in outcome.reason
    if state == "finished":
        assert (outcome.values, outcome.step) == ([0.4, 0.1], 2)


def test_folds_give_mean_and_spread_and_fail_together() -> None:
    outcome, spread = together([Outcome("finished", [0.2], 4, "", 1.0), Outcome("finished", [0.4], 2, "", 2.0)])
    assert (outcome.values, outcome.step, outcome.seconds) == ([pytest.approx(0.3)], 4, 3.0)
    assert spread == [pytest.approx(0.1414, abs=1e-4)]
    outcome, spread = together([Outcome("finished", [0.2]), Outcome("failed", reason="why")])
    assert (outcome.state, outcome.reason, outcome.values, spread) == ("failed", "why", [], [])


def test_time_counts_each_session_up_to_its_last_evaluation(tmp_path: Path) -> None:
    """100–130 (killed after an evaluation at 120), 200–205 (killed before one), 300 until now, 310."""
    (tmp_path / SESSIONS).write_text("100.0\n200.0\n300.0\n")
    lines = [{"step": 1, "seconds": 110.0}, {"step": 2, "seconds": 120.0}, {"step": 3, "seconds": 305.0}]
    text = "".join(json.dumps(line | {"metrics": {}}) + "\n" for line in lines)
    (tmp_path / "evaluations.jsonl").write_text(text)
    assert elapsed(tmp_path, 310.0) == 20.0 + 0.0 + 10.0


def test_the_first_outcome_holds(tmp_path: Path) -> None:
    Outcome("pruned", [0.1], 2).write(tmp_path)
    Outcome("finished", [0.2], 4).write(tmp_path)
    assert read_outcome(tmp_path) == Outcome("pruned", [0.1], 2)
    assert read_outcome(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("Traceback:\n  File x\nRuntimeError: 20 steps in a row\n"), "RuntimeError: 20 steps in a row"),
        (RuntimeError("torch.OutOfMemoryError: CUDA out of memory."), "out of memory: torch.OutOfMemoryError"),
        (UserError("batch.micro=0: must be 1."), "batch.micro=0: must be 1."),
        (KeyError(), "KeyError"),
    ],
)
def test_the_reason_is_one_line(error: Exception, line: str) -> None:
    assert reason_of(error).startswith(line)
    assert "\n" not in reason_of(error)


def test_a_study_that_cannot_be_written_is_one_sentence(make_sweep: Make) -> None:
    blueprint = draw_up(make_sweep())
    blueprint.folder.mkdir(parents=True)
    (blueprint.folder / "study.db").mkdir()
    with pytest.raises(UserError, match=r"study.db cannot be written .*choose another --storage"):
        Ledger.open(blueprint, 4)
