from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.quality.bleu import corpus_bleu, sentence_bleu

WORDS = st.lists(st.sampled_from(["Nora", "has", "the", "red", "kite", "."]), min_size=1, max_size=12).map(" ".join)


def test_sentence_by_hand():
    # Right of all: 4/5 words, 3/4 pairs, 2/3 triples, 1/2 fours; no brevity penalty: (4/5 · 3/4 · 2/3 · 1/2)^(1/4).
    assert sentence_bleu(["a b c d e"], ["a b c d f"]) == pytest.approx([100 * 0.2**0.25])


def test_short_answers_by_hand():
    # Orders 1 to 3 exist and are all right; half as long as the reference: exp(1 − 6/3).
    assert sentence_bleu(["a b c"], ["a b c d e f"]) == pytest.approx([100 * math.exp(-1)])


def test_corpus_by_hand():
    # Counts are added before dividing: 9/10 words, 7/8 pairs, 5/6 triples, 3/4 fours.
    score, signature = corpus_bleu(["a b c d e", "a b c d x"], ["a b c d e", "a b c d e"])
    assert score == pytest.approx(100 * (9 / 10 * 7 / 8 * 5 / 6 * 3 / 4) ** 0.25)
    assert "tok:13a" in signature
    assert "smooth:exp" in signature


@given(WORDS, WORDS)
@settings(max_examples=60, deadline=None)
def test_agrees_with_the_library(prediction: str, reference: str):
    import sacrebleu

    expected = sacrebleu.sentence_bleu(prediction, [reference], use_effective_order=True).score
    assert sentence_bleu([prediction], [reference]) == pytest.approx([expected])
    assert corpus_bleu([prediction], [reference])[0] == pytest.approx(
        sacrebleu.corpus_bleu([prediction], [[reference]]).score
    )


@given(WORDS)
@settings(max_examples=30, deadline=None)
def test_a_text_agrees_with_itself(text: str):
    assert sentence_bleu([text], [text]) == pytest.approx([100.0])


@given(st.text(max_size=60), st.text(max_size=60).filter(str.strip))
@settings(max_examples=80, deadline=None)
def test_every_text_gets_a_score_in_range(prediction: str, reference: str):
    assert 0.0 <= sentence_bleu([prediction], [reference])[0] <= 100.0


def test_an_empty_prediction_scores_zero():
    assert sentence_bleu(["", "a b"], ["a b", "a b"]) == pytest.approx([0.0, 100.0])


def test_an_empty_reference_is_an_error():
    with pytest.raises(ValueError, match="Reference 1 is empty"):
        sentence_bleu(["a", "b"], ["a", " "])
    with pytest.raises(ValueError, match="Reference 0 is empty"):
        corpus_bleu(["a"], [""])


def test_a_corpus_needs_a_text():
    with pytest.raises(ValueError, match="at least one"):
        corpus_bleu([], [])
