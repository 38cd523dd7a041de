"""Every architecture: its absorbed step is the plain one, candidates do not know their order or company, and it
decodes, generates, saves and grows as it should."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    BertConfig,
    DynamicCache,
    EncoderDecoderCache,
    EncoderDecoderModel,
    GPT2Config,
    GPT2LMHeadModel,
)
from transformers.modeling_outputs import BaseModelOutput

from data_pipeline.errors import UserError
from tests.urg.backbones.tiny import NETWORKS, VOCAB, bart, bert
from tests.urg.made_up import logits
from urg.backbones import BACKBONES, one_token
from urg.layout import Layout
from urg.model import URG, Settings
from urg.training.task import set_dropout

ALL = pytest.mark.parametrize("name", list(NETWORKS))
Queries = list[list[Tensor]]
Pack = Callable[[Queries], tuple[Tensor, Layout]]
STEPS = 7


def scores_of(model: URG, packed: tuple[Tensor, Layout]) -> Tensor:
    return model.rank(model.encode(*packed), packed[1])


def fused(model: URG, packed: tuple[Tensor, Layout], **options: Any) -> Tensor:
    hidden_SD = model.encode(*packed)
    selected_BN, _ = model.choose(model.rank(hidden_SD, packed[1]), packed[1])
    return model.fuse(hidden_SD, packed[1], selected_BN, **({"max_new_tokens": STEPS} | options))


@ALL
def test_the_absorbed_step_is_the_plain_one(name: str, build: Any, plain: Any, pack: Pack, queries: Queries) -> None:
    model = build(name)
    slow = plain(model)
    expected = pad_sequence([slow.scores(slow.states(query)) for query in queries], batch_first=True)
    scores = scores_of(model, pack(queries))
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-6)
    spread = (scores.max(1).values / scores.masked_fill(scores == 0, 1).min(1).values)[[0, 2, 3, 4]]
    assert (spread > 1.02).all(), "the tiny model must not make every score equal, or this proves little"


@ALL
def test_gradients_are_those_of_the_plain_step(name: str, build: Any, plain: Any, pack: Pack, queries: Queries) -> None:
    """From the scores to every weight of encoder and decoder."""
    model, (tokens_S, layout) = build(name), pack(queries)
    slow = plain(model, torch.float64)
    weight_BN = torch.randn(layout.tokens_BN.shape) * layout.tokens_BN
    (scores_of(model, (tokens_S, layout)) * weight_BN).sum().backward()
    sums = [
        (slow.scores(slow.states(query)) * weight_BN[b, : len(query)].double()).sum() for b, query in enumerate(queries)
    ]
    torch.stack(sums).sum().backward()
    expected = {n: p.grad for n, p in slow.network.named_parameters() if p.grad is not None}
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for key, parameter in model.network.named_parameters():
        own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        other = expected.get(key, torch.zeros_like(own).double())
        bound = 1e-3 * max(float(other.abs().max()), 1e-3 * largest)
        assert (own.double() - other).abs().max() <= bound, key


@ALL
def test_scores_permute_with_the_candidates(name: str, build: Any, pack: Pack, queries: Queries) -> None:
    model = build(name)
    scores = scores_of(model, pack(queries))
    orders = [torch.randperm(len(query)).tolist() for query in queries]
    moved = scores_of(model, pack([[q[i] for i in order] for q, order in zip(queries, orders, strict=True)]))
    for b, order in enumerate(orders):
        torch.testing.assert_close(moved[b, : len(order)], scores[b, order], rtol=1e-5, atol=1e-6)


@ALL
def test_neither_company_nor_chunks_matter(name: str, build: Any, pack: Pack, queries: Queries) -> None:
    """Padding stands among longer candidates, and among queries of more: neither is seen."""
    model = build(name)
    together = scores_of(model, pack(queries))
    torch.testing.assert_close((together * pack(queries)[1].tokens_BN).sum(1), torch.ones(len(queries)))
    for b, query in enumerate(queries):
        torch.testing.assert_close(together[b, : len(query)], scores_of(model, pack([query]))[0], rtol=1e-5, atol=1e-6)
        assert not together[b, len(query) :].any()
    model.chunk_tokens = 9
    torch.testing.assert_close(scores_of(model, pack(queries)), together, rtol=1e-5, atol=1e-6)


@ALL
def test_bf16_weights_are_used_in_fp32(name: str, build: Any, pack: Pack, queries: Queries) -> None:
    model = build(name).bfloat16()
    tokens_S, layout = pack(queries)
    hidden_SD = model.encode(tokens_S, layout)
    scores = model.rank(hidden_SD, layout)
    torch.testing.assert_close(scores, model.float().rank(hidden_SD.float(), layout), rtol=1e-5, atol=1e-6)


@ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_partitioned_weights_give_the_same_scores(
    dtype: torch.dtype, name: str, build: Any, pack: Pack, queries: Queries
) -> None:
    """ZeRO-3 marks its parameters with ds_id; then modules are called whole, and keys and values are projected."""
    model, packed = build(name).to(dtype), pack(queries)
    expected = scores_of(model, packed)
    for parameter in model.parameters():
        parameter.ds_id = 0
    tight = dtype == torch.float32
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if tight else {"rtol": 0.3, "atol": 0.02}
    torch.testing.assert_close(scores_of(model, packed), expected, **tolerance)


@ALL
def test_teacher_forced_logits_are_those_of_each_query_alone(
    name: str, build: Any, plain: Any, pack: Pack, queries: Queries, targets: Tensor
) -> None:
    model = build(name)
    output, slow = model(*pack(queries), targets), plain(model)
    for b, query in enumerate(queries):
        states, scores = slow.states(query), output.scores_BN[b, : len(query)].tolist()
        order = sorted(range(len(query)), key=lambda i: -scores[i])
        top, last = sorted(order[:2]), order[-1:] if len(query) > 2 else []
        for logits_TV, chosen in ((logits(output)[0][b], top), (logits(output)[1][b], sorted(top + last))):
            expected = slow.logits([states[i] for i in chosen], targets[b].tolist())
            torch.testing.assert_close(logits_TV, expected, rtol=1e-4, atol=1e-4)


@ALL
def test_greedy_fusing_is_a_loop_of_argmax(name: str, build: Any, plain: Any, pack: Pack, queries: Queries) -> None:
    model = build(name)
    free, slow = fused(model, pack(queries)), plain(model)
    assert len(free.unique(dim=0)) > 1, "the candidates must matter in this test"
    end = model.network.generation_config.eos_token_id = free[:, 3].mode().values.item()  # so that some end early
    ids_BT, backbone = fused(model, pack(queries)), model.backbone
    scores = scores_of(model, pack(queries))
    for b, (query, row) in enumerate(zip(queries, ids_BT.tolist(), strict=True)):
        states = slow.states(query)
        best = scores[b, : len(query)].argsort(descending=True)[:2].sort().values
        text = slow.greedy([states[i] for i in best], STEPS, {end})
        assert row == [backbone.start_id, *text] + [backbone.pad_id] * (len(row) - 1 - len(text))


@ALL
@pytest.mark.parametrize("num_beams", [1, 3])
def test_fused_text_depends_neither_on_company_nor_on_order(
    num_beams: int, name: str, build: Any, pack: Pack, queries: Queries
) -> None:
    model = build(name)
    together = fused(model, pack(queries), num_beams=num_beams)
    assert torch.equal(fused(model, pack([query[::-1] for query in queries]), num_beams=num_beams), together)
    for b, query in enumerate(queries):
        alone = fused(model, pack([query]), num_beams=num_beams)[0]
        assert torch.equal(together[b, : len(alone)], alone)
        assert (together[b, len(alone) :] == model.backbone.pad_id).all()


@ALL
@pytest.mark.parametrize("end", [None, 3])
def test_beam_search_is_the_librarys_own_and_reads_the_candidates_once(
    name: str, end: int | None, build: Any, pack: Pack, queries: Queries
) -> None:
    """The library's: from the states of each beam, its cache reordered. end: the place of a token that ends texts."""
    model, (tokens_S, layout) = build(name), pack(queries)
    states_BLD = model.encode(tokens_S, layout)[layout.token_BL]
    backbone, options = model.backbone, {"max_new_tokens": STEPS, "num_beams": 3}
    if end is not None:
        free = backbone.generate(states_BLD, layout.mask_BL, **options)
        model.network.generation_config.eos_token_id = free[:, end].mode().values.item()
    own = backbone.generate(states_BLD, layout.mask_BL, **options)
    expected = model.network.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=states_BLD),
        attention_mask=layout.mask_BL,
        past_key_values=EncoderDecoderCache(DynamicCache(), DynamicCache()),
        decoder_start_token_id=backbone.start_id,
        do_sample=False,
        **options,
    )
    assert len(own.unique(dim=0)) > 1, "the candidates must matter in this test"
    assert torch.equal(own, expected)
    rows = []
    for layer in model.network.modules():
        if isinstance(layer, torch.nn.Linear) and layer.in_features == states_BLD.shape[2]:
            layer.register_forward_hook(lambda _, given, __: rows.append(given[0].shape[:2]))
    backbone.generate(states_BLD, layout.mask_BL, **options)
    depth = len(backbone.layers)
    assert sum(shape[1] == states_BLD.shape[1] for shape in rows) == 2 * depth, "keys and values of each layer"
    assert {shape[0] for shape in rows if shape[1] == states_BLD.shape[1]} == {len(queries)}


@ALL
@pytest.mark.parametrize("given_weights", [False, True])
def test_a_folder_loads_back_as_it_was(
    given_weights: bool, name: str, build: Any, pack: Pack, queries: Queries, targets: Tensor, tmp_path: Path
) -> None:
    """given_weights: the parameters alone, as DeepSpeed gives them: no buffer, and no second name of a tied one."""
    model = build(name)
    if name.startswith("bart"):
        model.network.final_logits_bias.normal_()
    weights = {key: p.detach().clone() for key, p in model.named_parameters()} if given_weights else None
    model.save_pretrained(tmp_path, weights)
    loaded = URG.from_pretrained(tmp_path).eval()
    assert type(loaded.backbone) is type(model.backbone)
    ours, theirs = loaded(*pack(queries), targets), model(*pack(queries), targets)
    assert torch.equal(ours.scores_BN, theirs.scores_BN)
    assert torch.equal(logits(ours)[1], logits(theirs)[1])
    assert torch.equal(fused(loaded, pack(queries)), fused(model, pack(queries)))
    assert (loaded.backbone.start_id, loaded.backbone.end_ids) == (model.backbone.start_id, model.backbone.end_ids)
    head, embedding = loaded.network.get_output_embeddings().weight, loaded.network.get_decoder().get_input_embeddings()
    assert (head is embedding.weight) == (name != "t5gemma-biased")


@ALL
def test_resizing_adds_rows_and_changes_no_other(
    name: str, build: Any, pack: Pack, queries: Queries, targets: Tensor, tmp_path: Path
) -> None:
    model = build(name)
    before = model(*pack(queries), targets)
    before_BTV = logits(before)[0]
    model.resize_to(VOCAB - 1)
    assert model.backbone.vocab_size == VOCAB
    model.resize_to(VOCAB + 2)
    grown = model(*pack(queries), targets)
    assert torch.equal(grown.scores_BN, before.scores_BN)
    torch.testing.assert_close(logits(grown)[0][..., :VOCAB], before_BTV, rtol=1e-5, atol=1e-5)
    assert logits(grown)[0].shape[-1] == model.backbone.vocab_size == VOCAB + 2
    queries[0][0][0], targets[0, 0] = VOCAB + 1, VOCAB + 1  # the new tokens are read and written
    grown = model(*pack(queries), targets)
    model.save_pretrained(tmp_path)
    again = URG.from_pretrained(tmp_path).eval()(*pack(queries), targets)
    assert torch.equal(logits(again)[1], logits(grown)[1])
    assert torch.equal(again.scores_BN, grown.scores_BN)


@ALL
def test_dropout_reaches_every_layer_and_the_saved_configuration(
    name: str, build: Any, pack: Pack, queries: Queries, targets: Tensor, tmp_path: Path
) -> None:
    model = build(name)
    expected = model(*pack(queries), targets)
    model.train()
    for rate in (0.3, 0.0):
        set_dropout(model, rate)
        model.backbone.set_dropout(rate)
        trained = model(*pack(queries), targets)
        for ours, theirs in ((trained.scores_BN, expected.scores_BN), (logits(trained)[0], logits(expected)[0])):
            assert torch.allclose(ours, theirs, atol=1e-4) == (rate == 0.0)
    model.backbone.set_dropout(0.3)
    model.save_pretrained(tmp_path)
    loaded = URG.from_pretrained(tmp_path).train()
    assert {layer.p for layer in loaded.modules() if isinstance(layer, torch.nn.Dropout)} <= {0.3}
    assert not torch.allclose(scores_of(loaded, pack(queries)), expected.scores_BN, atol=1e-4)


@ALL
def test_the_teacher_is_p_without_the_decoders_dropout(
    name: str, build: Any, pack: Pack, queries: Queries, targets: Tensor
) -> None:
    """It draws nothing and leaves everything in training, so that all else is the same bit for bit."""
    model, (tokens_S, layout) = build(name).train(), pack(queries)
    set_dropout(model, 0.3)
    places_P = torch.arange(targets.numel())
    outputs = []
    for with_teacher in (False, True):
        torch.manual_seed(3)
        outputs.append(model(tokens_S, layout, targets, with_teacher=with_teacher))
        assert all(module.training for module in model.modules())
    without, output = outputs
    for field in ("scores_BN", "p_states_PD", "q_states_PD"):
        assert torch.equal(getattr(output, field), getattr(without, field))
    assert without.teacher_states_PD is None
    torch.manual_seed(3)
    hidden_SD = model.encode(tokens_S, layout)
    selected_BN, _ = model.choose(output.scores_BN, layout)
    model.eval()
    (expected_PD,) = model.backbone.teacher_force(hidden_SD, layout, [selected_BN], 2, targets, places_P)
    torch.testing.assert_close(output.teacher_states_PD, expected_PD.detach(), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(output.teacher_states_PD, output.p_states_PD, atol=1e-3)
    assert not output.teacher_states_PD.requires_grad


@ALL
def test_checkpointing_activations_changes_no_gradient(
    name: str, build: Any, pack: Pack, queries: Queries, targets: Tensor
) -> None:
    model = build(name).train()
    set_dropout(model, 0.0)
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.network.activation_checkpointing_enable()
        model.zero_grad()
        output = model(*pack(queries), targets)
        (logits(output)[1].logsumexp(-1).sum() + output.scores_BN.square().sum()).backward()
        gradients.append([None if p.grad is None else p.grad.clone() for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@ALL
def test_a_frozen_model_gives_the_same_scores_and_texts(name: str, build: Any, pack: Pack, queries: Queries) -> None:
    model, packed = build(name), pack(queries)
    expected_BN, texts = scores_of(model, packed), [fused(model, packed, num_beams=beams) for beams in (1, 3)]
    model.freeze()
    torch.testing.assert_close(scores_of(model, packed), expected_BN, rtol=1e-5, atol=0)
    assert all(
        torch.equal(fused(model, packed, num_beams=beams), own) for beams, own in zip((1, 3), texts, strict=True)
    )
    assert not any(parameter.requires_grad for parameter in model.parameters())


@ALL
@torch.inference_mode()
def test_a_query_that_is_attended_to_in_parts_has_the_same_scores(
    name: str, build: Any, pack: Pack, queries: Queries, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, packed = build(name), pack(queries)
    expected_BN = scores_of(model, packed)
    model.chunk_tokens = 20
    model.freeze()
    for tokens in (1, 7, 16):
        monkeypatch.setattr(one_token, "ATTENDED_AT_ONCE", tokens)
        torch.testing.assert_close(scores_of(model, packed), expected_BN, rtol=1e-5, atol=0)


# --------------------------------------------------------------------------------------------------------------------
# Limits, habits and refusals


@pytest.mark.parametrize(("name", "longest"), [("bart", 12), ("bert", 12), ("roberta", 12)])
def test_learnt_positions_are_all_used_and_no_more(
    name: str, longest: int, build: Any, pack: Pack, queries: Queries
) -> None:
    model = build(name)
    assert model.backbone.longest == longest
    model.encode(*pack([[torch.full((longest,), 5), torch.tensor([5])]]))
    assert fused(model, pack(queries), max_new_tokens=longest, min_new_tokens=longest).shape[1] == longest + 1
    with pytest.raises(UserError, match="max_new_tokens is 13 tokens"):
        fused(model, pack(queries), max_new_tokens=longest + 1)


def test_what_a_base_was_wont_to_generate_is_forgotten(pack: Pack, queries: Queries, tmp_path: Path) -> None:
    """BART's hub folders force a first token, and a shortest length where they were tuned to summarize."""
    bart(scale_embedding=True).save_pretrained(tmp_path)
    file = tmp_path / "generation_config.json"
    habits = {"forced_bos_token_id": 7, "min_length": 6, "num_beams": 2, "no_repeat_ngram_size": 1}
    file.write_text(json.dumps(json.loads(file.read_text()) | habits))
    model = URG.from_pretrained(tmp_path).eval()
    assert (model.backbone.start_id, model.backbone.end_ids, model.backbone.pad_id) == (2, {2}, 1)
    own = model.network.generation_config
    assert (own.forced_bos_token_id, own.num_beams, own.no_repeat_ngram_size) in [(None, None, None), (None, 1, 0)]
    assert not own.min_length
    assert not (fused(model, pack(queries))[:, 1] == 7).all()


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=9, n_embd=4, n_layer=1, n_head=1, n_positions=8)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is a gpt2; URG takes an encoder-decoder ") as caught:
        URG.from_pretrained(tmp_path)
    assert all(name in str(caught.value) for name in BACKBONES)
    assert "\n" not in str(caught.value)


def test_halves_of_other_kinds_or_unequal_width_are_refused() -> None:
    wide = bert(BertConfig, hidden_size=24, is_decoder=True, add_cross_attention=True)
    other = GPT2Config(vocab_size=9, n_embd=12, n_layer=1, n_head=1, n_positions=8, add_cross_attention=True)
    for decoder, match in ((wide, "12 and 24 wide"), (other, "made of bert and gpt2")):
        config = EncoderDecoderModel.config_class.from_encoder_decoder_configs(bert(), decoder)
        with pytest.raises(UserError, match=match):
            URG(EncoderDecoderModel(config), Settings())


def test_weights_under_their_old_names_load(pack: Pack, queries: Queries) -> None:
    """Checkpoints from when every network was a T5."""
    shape = {"d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 1, "num_heads": 3}
    old, new = (URG.from_scratch(VOCAB, Settings(), **shape).eval() for _ in range(2))
    stored = {key.replace("network.", "t5.", 1): tensor for key, tensor in old.state_dict().items()}
    new.load_state_dict(stored)
    assert torch.equal(scores_of(new, pack(queries)), scores_of(old, pack(queries)))


def test_what_needs_a_t5_says_so(build: Any) -> None:
    with pytest.raises(UserError, match="the model is a bart; here one of the T5 family is needed"):
        _ = build("bart").t5
