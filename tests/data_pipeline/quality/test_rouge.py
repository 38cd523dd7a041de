from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.quality.rouge import ROUGE_NAMES, rouge

SENTENCES = st.lists(
    st.sampled_from(["cats", "running", "lamps", "in", "Oslo.", "Nora", "said", "it!", "has", "12"]), min_size=1
).map(" ".join)


def test_values_by_hand():
    # Words in common: the, cat. Precision 2/3, recall 2/4: F1 = 2·(2/3)(2/4) / (2/3 + 2/4) = 4/7.
    # The longest common subsequence is "the cat" as well, so ROUGE-L is the same.
    # Pairs in common: "the cat", of 2 and of 3: F1 = 2·(1/2)(1/3) / (1/2 + 1/3) = 2/5.
    scores = rouge(["the cat sat"], ["the cat ran home"])
    assert scores["rouge1"] == pytest.approx([4 / 7])
    assert scores["rouge2"] == pytest.approx([2 / 5])
    assert scores["rougeL"] == pytest.approx([4 / 7])
    assert scores["rougeLsum"] == pytest.approx([4 / 7])


def test_only_lsum_forgives_the_order_of_sentences():
    # Of "we slept it rained" the other order keeps one sentence as a subsequence: 2 of 4 words.
    # Sentence by sentence it is 4 of 4.
    scores = rouge(["It rained. We slept."], ["We slept. It rained."])
    assert scores["rougeL"] == pytest.approx([0.5])
    assert scores["rougeLsum"] == pytest.approx([1.0])


def test_lines_are_sentences_too():
    assert rouge(["- It rained\n- We slept"], ["We slept. It rained."])["rougeLsum"] == pytest.approx([1.0])


def test_words_are_compared_by_their_stems_without_case():
    assert rouge(["Running DOGS"], ["run dog"])["rouge1"] == pytest.approx([1.0])


@given(SENTENCES, SENTENCES)
@settings(max_examples=60, deadline=None)
def test_agrees_with_the_library(prediction: str, reference: str):
    from rouge_score.rouge_scorer import RougeScorer

    from data_pipeline.quality.rouge import split_sentences

    scorer = RougeScorer(list(ROUGE_NAMES), use_stemmer=True)
    expected = scorer.score(reference, prediction)
    by_line = scorer.score(split_sentences(reference), split_sentences(prediction))
    scores = rouge([prediction], [reference])
    for name in ("rouge1", "rouge2", "rougeL"):
        assert scores[name] == [expected[name].fmeasure]
    assert scores["rougeLsum"] == [by_line["rougeLsum"].fmeasure]


@given(SENTENCES)
@settings(max_examples=30, deadline=None)
def test_a_text_agrees_with_itself(text: str):
    scores = rouge([text], [text])
    words = len(text.split())
    assert {name: scores[name] for name in ("rouge1", "rougeL", "rougeLsum")} == {
        "rouge1": [1.0],
        "rougeL": [1.0],
        "rougeLsum": [1.0],
    }
    # One word has no pair of words.
    assert scores["rouge2"] == [1.0 if words > 1 else 0.0]


@given(st.text(max_size=60), st.text(max_size=60).filter(str.strip))
@settings(max_examples=80, deadline=None)
def test_every_text_gets_a_score_in_range_or_none(prediction: str, reference: str):
    for values in rouge([prediction], [reference]).values():
        assert math.isnan(values[0]) or 0.0 <= values[0] <= 1.0


def test_an_empty_prediction_scores_zero():
    assert rouge(["", "Oslo"], ["Oslo", "Oslo"])["rougeL"] == [0.0, 1.0]


def test_a_reference_without_a_latin_word_is_missing():
    assert all(math.isnan(values[0]) for values in rouge(["Привет"], ["Привет"]).values())


@pytest.mark.parametrize("reference", ["", " \n"])
def test_an_empty_reference_is_an_error(reference: str):
    with pytest.raises(ValueError, match="Reference 1 is empty"):
        rouge(["a", "b"], ["a", reference])


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="2 predictions but 1 references"):
        rouge(["a", "b"], ["a"])


def test_no_pairs_no_scores():
    assert rouge([], []) == {name: [] for name in ROUGE_NAMES}
