"""What is timed is the same thing done twice: the obvious code gives our scores and our gradients."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.errors import UserError
from urg.benchmark import main, quick
from urg.benchmarks import faults, growth
from urg.benchmarks.clock import in_own_process, in_turn, matmul_peak, peak_bytes, timed
from urg.benchmarks.config import SAME_ENCODER, BenchmarkConfig
from urg.benchmarks.experiments import cpu_name
from urg.benchmarks.first import measure_first
from urg.benchmarks.flops import encoder_flops, ranked_lengths
from urg.benchmarks.fusing import K, fusings, measure_fusing, one_text
from urg.benchmarks.growth import exponent
from urg.benchmarks.obvious import ObviousURG
from urg.benchmarks.profiles import profiled
from urg.benchmarks.rankers import (
    ON_OUR_ENCODER,
    OTHERS,
    RANKINGS,
    _timed_rows,
    frozen_rankers,
    make_ranker,
    measure_rankers,
    pair_lengths,
)
from urg.benchmarks.ranking import packed_ranker
from urg.benchmarks.ratios import FUSED, NOT_RUN, RATIOS, ratios
from urg.benchmarks.shapes import make_model
from urg.benchmarks.tables import sheets
from urg.benchmarks.training import VARIANTS, training_step
from urg.benchmarks.workload import PAD, batch_of, draw_rows, padded
from urg.frozen_encoder import CHUNK_TOKENS, FrozenEncoder
from urg.model import select
from urg.systems.encoder import EncoderRanker
from urg.systems.gen_fuser import pad

CPU = torch.device("cpu")


def test_rows_have_mixinstructs_lengths_and_are_seeded() -> None:
    rows = draw_rows(400, 12, 1000)
    assert np.mean([len(row.question) for row in rows]) == pytest.approx(20, rel=0.02)
    assert np.mean([len(ids) for row in rows for ids in row.responses]) == pytest.approx(66, rel=0.02)
    assert max(len(ids) for row in rows for ids in row.responses) == 128
    again = draw_rows(400, 12, 1000)
    assert all(np.array_equal(a.question, b.question) for a, b in zip(rows, again, strict=True))


def test_packed_and_padded_rows_hold_the_same_tokens() -> None:
    rows = draw_rows(3, 5, 100)
    ids_BNL, mask_BNL = padded(rows)
    assert torch.equal(ids_BNL[mask_BNL.bool()], batch_of(rows).tokens_S)


@torch.inference_mode()
def test_the_obvious_ranking_is_ours() -> None:
    """Ours with the weights as they are, and frozen in fp32, beside the obvious code in double precision."""
    model = make_model("tiny")
    rows = draw_rows(8, 6, 1000)
    expected_BN = ObviousURG(copy.deepcopy(model).double()).rank(*padded(rows)).float()
    batch, double = batch_of(rows), copy.deepcopy(model).double()
    plain_BN = double.rank(double.encode(batch.tokens_S, batch.layout), batch.layout)
    for ours_BN in (plain_BN, packed_ranker(model)(rows, CPU)):
        torch.testing.assert_close(ours_BN, expected_BN, rtol=1e-5, atol=0)
        assert torch.equal(ours_BN.argsort(1), expected_BN.argsort(1))


def test_the_obvious_training_step_has_our_gradients() -> None:
    model = make_model("tiny")
    steps = {name: training_step(name, model, rows=2, n=6, device=CPU) for name in VARIANTS}
    gradients = {name: {key: grad.clone() for key, grad in step().items()} for name, step in steps.items()}
    assert len(gradients["ours"]) > 20
    for name in VARIANTS[1:]:
        assert gradients[name].keys() == gradients["ours"].keys()
        for key, grad in gradients["ours"].items():
            torch.testing.assert_close(gradients[name][key], grad, rtol=1e-3, atol=1e-6, msg=f"{name} {key}")


@torch.inference_mode()
def test_the_other_rankers_encode_the_tokens_that_the_paper_counts() -> None:
    """By §3.5's formula, with the special tokens that each of them adds."""
    rows = draw_rows(2, 4, 1000)
    seen: dict[str, int] = {}
    for system in OTHERS:
        model = make_ranker(system, "tiny")
        states, sizes = model.states, []
        model.states = lambda sequences, states=states, sizes=sizes: (sizes.append(sequences), states(sequences))[1]  # type: ignore[method-assign,misc]
        RANKINGS[system](model, rows)
        seen[system] = sum(sum(own.lengths) for own in sizes)
    questions = sum(len(row.question) for row in rows)
    responses = sum(len(ids) for row in rows for ids in row.responses)
    assert seen["simcls"] == questions + responses + 3 * (2 + 8)
    assert seen["summareranker"] == 4 * questions + responses + 5 * 8
    assert seen["pair_ranker_full"] == 12 * questions + 6 * responses + 9 * 24
    assert seen["pair_ranker_bubble"] < seen["pair_ranker_full"]


@torch.inference_mode()
def test_rankers_on_our_encoder_are_packed_as_ours_and_score_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, config = draw_rows(2, 4, 1000), make_model("tiny").t5.config
    made = frozen_rankers(ON_OUR_ENCODER, config, CPU)
    assert all(isinstance(model.frozen_encoder, FrozenEncoder) for model in made.values())
    assert {model.chunk_tokens for model in made.values()} == {CHUNK_TOKENS}
    scores = {system: RANKINGS[system](model, rows) for system, model in made.items()}
    monkeypatch.setattr(EncoderRanker, "freeze", lambda self: self)  # the same weights, by the code that trains them
    for system, model in frozen_rankers(ON_OUR_ENCODER, config, CPU).items():
        for own, expected in zip(scores[system], RANKINGS[system](model, rows), strict=True):
            np.testing.assert_allclose(own, expected, rtol=1e-5, atol=1e-5)
    assert config.is_encoder_decoder


def test_the_small_encoder_has_as_many_parameters_in_its_layers_as_that_of_a_small_t5() -> None:
    own, other = make_model("t5-small").t5.encoder.block, make_ranker("simcls", "t5-small").pretrained_model
    ours, theirs = (sum(p.numel() for p in layers.parameters()) for layers in (own, other.encoder.layer))
    assert theirs == pytest.approx(ours, rel=0.01)


def test_the_other_rankers_and_ours_are_timed_on_the_same_rows() -> None:
    told = measure_rankers(make_model("tiny"), "tiny", batch=4, n=3, repeats=1, device=CPU)
    assert list(told) == ["fp32", "bf16"]
    encoder = sum(p.numel() for p in make_model("tiny").t5.encoder.parameters())
    for systems in told.values():
        assert systems.keys() == {"urg", *OTHERS, *(name + SAME_ENCODER for name in ON_OUR_ENCODER)}
        assert {name: own["rows"] for name, own in systems.items() if own["rows"] != 4} == {
            "pair_ranker_full": 1,
            "pair_ranker_full_same_encoder": 1,
        }
        for own in systems.values():
            assert own["norm"] == pytest.approx(own["parameters"] / 1e9 * own["rows_per_s"])
        assert systems["simcls_same_encoder"]["parameters"] == encoder
        assert systems["simcls"]["tokens_per_row"] < systems["urg"]["tokens_per_row"]


def test_all_pairs_of_one_row_stand_for_the_batch_by_their_tokens() -> None:
    rows = draw_rows(5, 3, 1000)
    model, tokens = make_ranker("pair_ranker_full", "tiny"), []
    model.register_forward_pre_hook(lambda module, inputs: tokens.append(sum(inputs[0].lengths)))
    for row in rows:
        RANKINGS["pair_ranker_full"](model, [row])
    ((timed,), worth) = _timed_rows("pair_ranker_full", rows, CPU)
    own = tokens[next(i for i, row in enumerate(rows) if row is timed)]
    assert worth == pytest.approx(own / np.mean(tokens))
    assert abs(own - np.mean(tokens)) == min(abs(other - np.mean(tokens)) for other in tokens)
    assert _timed_rows("pair_ranker_bubble", rows, CPU) == (rows, 5)


@pytest.mark.parametrize("beams", [1, 4])
@torch.inference_mode()
def test_every_way_to_fuse_writes_as_many_tokens_and_encoding_again_changes_none(beams: int) -> None:
    model, rows = make_model("tiny").eval(), draw_rows(2, 5, 1000)
    options = {"num_beams": beams, "max_new_tokens": 5, "min_new_tokens": 5}
    texts = {name: call(**options) for name, call in fusings(model, rows, CPU).items()}
    assert {tuple(ids.shape) for ids in texts.values()} == {(2, 6)}  # the start token comes first
    assert torch.equal(texts["fid"], texts["ours"])
    assert torch.equal(texts["ours_whole"], texts["ours"])


@torch.inference_mode()
def test_gen_fuser_without_padding_writes_what_the_library_writes() -> None:
    model, rows = make_model("tiny").eval(), draw_rows(3, 5, 1000)
    options = {"num_beams": 1, "max_new_tokens": 5, "min_new_tokens": 5}
    plain, batch = copy.deepcopy(model.t5), batch_of(rows)
    written = fusings(model, rows, CPU)["gen_fuser"](**options)
    chosen_BN, _ = select(model.rank(model.encode(batch.tokens_S, batch.layout), batch.layout), batch.layout.mask_BN, K)
    texts = [one_text(row, own.nonzero().flatten().tolist()) for row, own in zip(rows, chosen_BN, strict=True)]
    ids_BL, mask_BL = pad(texts, PAD)
    assert torch.equal(written, plain.generate(ids_BL, attention_mask=mask_BL, do_sample=False, **options))


def test_fusing_is_timed_greedily_and_by_beam_search_in_both_dtypes() -> None:
    part = measure_fusing(lambda: make_model("tiny"), 2, 5, 3, 1, CPU)
    assert part["runs"].keys() == FUSED.keys()
    assert part["runs"]["greedy_fp32"]["fid_writes_the_same"] == 1
    made = sheets({"fuse": part, "ratios": {}, "missing": {}, "config": {"quick": False, "rank_shape": "tiny"}})
    assert [len(sheet.groups[0].lines) for sheet in made[:-1]] == [4, 2, 4, 2]


def test_operations_are_those_of_the_layers() -> None:
    """Counted by torch on a real encoder, one candidate, no bias or norm counted by either."""
    from torch.utils.flop_counter import FlopCounterMode

    model = make_model("tiny")
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.t5.set_attn_implementation("eager")
        model.t5.encoder(input_ids=torch.ones(1, 37, dtype=torch.int64))
    assert encoder_flops(model.t5.config, [37]) == pytest.approx(counter.get_total_flops(), rel=1e-6)


def test_exponents_are_those_of_the_paper() -> None:
    assert exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    counts, config = (8, 16, 32, 64), make_model("tiny").t5.config
    for system, expected in {"urg": 1, "simcls": 1, "pair_ranker_bubble": 1, "pair_ranker_full": 2}.items():
        flops = [encoder_flops(config, ranked_lengths(system, n, 20, 66)) for n in counts]
        assert exponent(counts, flops) == pytest.approx(expected, abs=0.1)


def test_growth_is_told_with_the_operations_that_were_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "COUNTS", (2, 4))
    monkeypatch.setattr(growth, "RESPONSE_TOKENS", (8.0, 16.0))
    part = growth.measure_growth(lambda: make_model("tiny"), None, 2, 1, CPU)
    config, row = make_model("tiny").t5.config, draw_rows(1, 4, 32_128, seed=4)[0]
    assert part["pair_ranker_full_flops_by_n"]["4"] == encoder_flops(config, pair_lengths(row))
    assert len(pair_lengths(row)) == 12
    assert part["flops_by_n"]["4"] > 1.5 * part["flops_by_n"]["2"]
    assert len(part["seconds_by_length"]) == 2
    by_n, by_length, _ = sheets({"complexity": part, "ratios": {}, "missing": {}, "config": {"quick": False}})
    assert [line.cells[0] for line in by_n.groups[0].lines] == ["N = 2", "N = 4", "fitted exponent"]
    assert by_length.groups[0].lines[-1].cells[2] == f"{part['analytic_length_exponent']:.2f}"


def test_variants_take_turns_after_warming_up() -> None:
    calls: list[str] = []
    timings = in_turn({name: lambda name=name: calls.append(name) for name in "ab"}, repeats=2, device=CPU)  # type: ignore[misc]
    assert calls == ["a", "b", "a", "b", "a", "b"]
    assert len(timings["a"].seconds) == 2
    assert timed(lambda: None, CPU) < 1
    assert matmul_peak(torch.float32, CPU, size=64, repeats=1) > 0


def test_the_peak_is_what_a_call_holds() -> None:
    def hold() -> None:
        torch.ones(200 << 18).sum()  # 200 MiB of fp32

    hold()
    assert 180 << 20 < peak_bytes(hold, CPU) < 260 << 20


def test_a_function_in_its_own_process_gives_what_it_printed_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["import json, time", "def tell(*given, started):", "    print('not this')"]
    lines.append("    print(json.dumps([given, started, time.time()]))")
    (tmp_path / "telling.py").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    before = time.time()
    given, started, now = in_own_process("telling", "tell", "x", (1, 2))
    assert given == ["x", [1, 2]]
    assert before <= started < now < time.time()


@pytest.mark.slow
def test_the_first_ranking_is_timed_and_memory_is_that_of_the_rows() -> None:
    told = measure_first("tiny", (1, 4), 6, 1)
    for own in told.values():
        assert all(0 < own[f"{what}_seconds"] < 120 for what in ("import", "model", "first"))
        assert own["model_bytes"] > 0
        assert own["peak_bytes"].keys() <= {"1", "4"}
        assert all(0 <= value < 2**30 for value in own["peak_bytes"].values())


def test_what_keeping_costs_is_that_of_whole_runs_and_of_the_interval_with_a_checkpoint() -> None:
    """Runs of 60 steps that log each tenth: a second a step, 1.01 with tracking, and 5 more for a checkpoint at 30."""
    moments = [(step, step * 2.0) for step in (1, *range(10, 61, 10))]
    assert faults._intervals(moments) == [2.0] * 5
    kept = [1.01, 1.01, 1.51, 1.01, 1.01]
    told = faults._cost_of_keeping({"bare": [[1.0] * 5] * 3, "kept": [kept] * 3}, 60)
    assert told == pytest.approx({"overhead": 0.11, "checkpoint_seconds": 5.0})


def test_the_moments_are_those_of_the_log_and_what_is_due_is_done_once(tmp_path: Path) -> None:
    run, done = faults._Run(tmp_path, "x", 3, {}), []
    run.log.parent.mkdir(parents=True)
    line = f"print('step %d/3  loss 0.1', file=open({str(run.log)!r}, 'a'))"
    body = "; ".join(f"{line % step}; time.sleep(0.1)" for step in (1, 2, 2, 3))
    run.command = [sys.executable, "-c", f"import time; {body}"]
    moments = faults._train(run, {2: lambda process: done.append(process.pid)})
    assert [step for step, _ in moments] == [1, 2, 2, 3]
    assert all(0.05 < seconds < 5 for seconds in np.diff([when for _, when in moments]))
    assert len(done) == 1
    run.command = [sys.executable, "-c", "import sys; sys.exit(3)"]
    with pytest.raises(RuntimeError, match="code 3"):
        faults._train(run)


@pytest.mark.slow
@pytest.mark.benchmark
@pytest.mark.timeout(1500)
def test_every_ratio_has_a_value_or_a_reason(tmp_path: Path) -> None:
    shapes = {"rank_shape": "tiny", "train_shape": "tiny", "ranker_shape": "tiny"}
    small = {"batches": (2,), "repeats": 1, "train_rows": 2, "new_tokens": 3, "stack_steps": 16, "fault_steps": 40}
    main(BenchmarkConfig(str(tmp_path), **shapes, **small))
    result = json.loads((tmp_path / "benchmark.json").read_text())
    assert set(result["ratios"]) == set(RATIOS)
    assert result["missing"] == {}
    assert "| pair\\_ranker\\_full |" in (tmp_path / "benchmark.md").read_text()


def test_a_profile_names_the_operators_that_take_the_time() -> None:
    a = torch.randn(400, 400)
    told = profiled(lambda: [a @ a for _ in range(20)] and a + a, CPU)
    assert (told[0]["operator"], told[0]["calls"]) == ("aten::mm", 20)
    assert told[0]["share"] > 0.5
    assert [own["share"] for own in told] == sorted((own["share"] for own in told), reverse=True)


def test_a_result_says_of_what_commit_and_machine_it_is() -> None:
    machine = {"cpu": "Made 3", "cores": 2, "threads": 1, "device": "cpu", "torch": "2.13", "load": 0.0}
    result = {"ratios": {}, "missing": {}, "config": {"quick": False}, "commit": "abc+", "machine": machine}
    (sheet,) = sheets(result)
    assert sheet.notes == ("Commit abc+; Made 3, 2 cores, 1 threads, cpu, torch 2.13, load 0.0 at the beginning.",)
    assert cpu_name()


def test_a_ratio_of_what_is_not_equal_is_missing() -> None:
    seconds, memory = {"ours": 1.0, "obvious_1": 3.0, "obvious_3": 5.0}, {"ours": {"peak": 1}, "obvious_3": {"peak": 8}}
    train = {"seconds": seconds, "bytes": memory, "gradient_difference": {"obvious_1": 2e-6, "obvious_3": float("nan")}}
    runs = {name: {"seconds": {"gen_fuser": 2.0, "ours": 1.0}, "fid_writes_the_same": 0.9} for name in FUSED}
    values, missing = ratios({"train": train, "fuse": {"runs": runs}})
    assert values == {"train_vs_naive1": 3.0}
    assert missing["train_vs_naive3"] == "not equal: gradients differ by nan, more than 1.0e-05"
    assert {"train_memory_vs_naive3", *FUSED.values()} < missing.keys()
    assert set(missing) | set(values) == set(RATIOS)


@pytest.mark.parametrize(("dtype", "lacking"), [("fp32", "rank_vs_naive"), ("bf16", "rank_bf16_vs_naive_fp32")])
def test_scores_that_differ_cost_the_ratios_of_their_dtype(dtype: str, lacking: str) -> None:
    own = {"seconds": 1.0, "peak_share": 0.5}
    variants = [f"{kind}_{name}" for kind in ("ours", "obvious") for name in ("fp32", "bf16")]
    differences = {"ours_fp32": 1e-6, "ours_bf16": 1e-2, "obvious_fp32": 0.0, "obvious_bf16": 2e-2} | {
        f"ours_{dtype}": 3e-2
    }
    part = {
        "runs": [{"systems": dict.fromkeys(variants, own)}],
        "same_ranking": {name: {"largest_relative_difference": value} for name, value in differences.items()},
        "rank_step": {name: {"share": 0.02} for name in ("fp32", "bf16")},
    }
    values, missing = ratios({"rank": part})
    assert missing[lacking].startswith(f"not equal: scores in {dtype} differ by up to 3.0e-02")
    assert ("peak_share_fp32" in values) == (dtype == "bf16")


def test_what_was_not_asked_for_is_missing_and_the_tables_say_so() -> None:
    missing = {"n_exponent": NOT_RUN, "train_vs_naive3": "not equal"}
    (sheet,) = sheets({"ratios": {}, "missing": missing, "config": {"quick": True}})
    assert [line.cells for line in sheet.groups[0].lines] == [("train_vs_naive3", "missing: not equal")]
    assert "no result" in sheet.notes[0]
    assert sheet.notes[1] == "1 more ratios are of experiments that were not run (--experiment)."


def test_quick_leaves_what_was_given() -> None:
    made = quick(BenchmarkConfig(quick=True, rank_shape="t5-base-of-mine", repeats=1))
    assert (made.rank_shape, made.repeats) == ("t5-base-of-mine", 1)
    assert (made.train_shape, made.batches, made.new_tokens) == ("t5-small", (2,), 16)


def test_bad_settings_are_one_sentence() -> None:
    with pytest.raises(UserError, match="more than four"):
        BenchmarkConfig(n=4)
    with pytest.raises(UserError, match="neither a model folder nor one of the shapes"):
        make_model("t5-enormous")
    done = subprocess.run([sys.executable, "-m", "urg.benchmark", "--n", "3"], capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(("parameters", "printed"), [(0.78e9, "URG (770M)"), (2.85e9, "URG (3B)"), (77e6, "–")])
def test_ours_stands_beside_the_published_speed_of_its_size(parameters: float, printed: str) -> None:
    own = {"rows": 8, "tokens_per_row": 9.0, "rows_per_s": 2.0, "spread": 0.0, "norm": 1.0, "parameters": parameters}
    rankers = {"encoder": "t5-xl", "batches": {"16": {"fp32": {"urg": own}}}}
    timed = sheets({"rankers": rankers, "ratios": {}, "missing": {}, "config": {"quick": False}})[0]
    line = dict(zip(timed.head[7:], timed.groups[0].lines[0].cells[7:], strict=True))
    assert (line["as"], line["rows/s"]) == (printed, {"URG (770M)": "10.6667", "URG (3B)": "3.99"}.get(printed, "–"))
