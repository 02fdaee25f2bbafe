"""The answer rule, as a table, by hypothesis, and at sizes no model writes."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyzero_trl.answer import END_OF_TEXT, MAX_RESPONSE, Parts, split_response

EXACT = "<think>a</think>\n<answer>1 + 2</answer>"


@pytest.mark.parametrize(
    ("response", "think", "answer", "is_exact"),
    [
        (EXACT, "a", "1 + 2", True),
        ("<think>a</think><answer>1</answer>", "a", "1", True),
        ("<think>a</think>\n\n \t<answer>1</answer>\r\n ", "a", "1", True),
        (" \n<think>a</think><answer>1</answer>", "a", "1", True),
        ("<think>a\nb</think><answer>\n1 +\n2\n</answer>", "a\nb", "1 +\n2", True),
        ("<think>a <b> < c</think><answer>1</answer>", "a <b> < c", "1", True),
        ("<think>so <answer>9</answer>?</think><answer>1</answer>", "so <answer>9</answer>?", "1", True),
        ("<think>a</think><answer>1</answer> done", "a", "1", False),
        ("<think>a</think>So: <answer>1</answer>", "a", "1", False),
        ("Sure. <think>a</think><answer>1</answer>", "a", "1", False),
        ("a</think><answer>1</answer>", None, "1", False),
        ("<think></think><answer>1</answer>", "", "1", False),
        ("<think> \n</think><answer>1</answer>", " \n", "1", False),
        ("<think>a</think><answer> </answer>", "a", "", False),
        ("<think>a</think>\N{NO-BREAK SPACE}<answer>1</answer>", "a", "1", False),
        ("<think>a<answer>1</answer>", None, None, False),
        ("<think>a<answer>1</answer></think>", "a<answer>1</answer>", None, False),
        ("<answer>1</answer><think>a</think>", "a", None, False),
        ("<think>a</think></think><answer>1</answer>", None, None, False),
        ("<think>a</think><answer>1</answer></think>", None, None, False),
        ("<think>a</think><answer>1</think></answer>", None, None, False),
        ("<think><think>a</think><answer>1</answer>", None, None, False),
        ("<think>a</think><think>b<answer>1</answer>", None, None, False),
        ("</think><think><answer>1</answer>", None, None, False),
        ("<think>a</think><answer>1</answer><answer>1</answer>", "a", None, False),
        ("<think>a</think><answer>1</answer></answer>", "a", None, False),
        ("<think>a</think><answer><answer>1</answer>", "a", None, False),
        ("<think>a</think></answer>1<answer>", "a", None, False),
        ("<think>a</think><answer>1", "a", None, False),
        ("<think>a</think>1</answer>", "a", None, False),
        ("<think>a</think><Answer>1</Answer>", "a", None, False),
        ("<think>a</think>< answer >1</ answer >", "a", None, False),
        ("<think>a</think><answer x=1>1</answer>", "a", None, False),
        ("<think>a</think>", "a", None, False),
        ("", None, None, False),
    ],
)
def test_a_response_splits_by_the_documented_rule(response, think, answer, is_exact):
    parts = split_response(response)
    assert (parts.think, parts.answer, parts.is_exact) == (think, answer, is_exact)
    assert parts.has_answer_tag == ("<answer>" in response or "</answer>" in response)


@pytest.mark.parametrize("token", END_OF_TEXT)
def test_end_of_text_tokens_after_the_answer_do_not_matter(token):
    for ending in (token, "\n" + token, token * 3, f" {token} \n{token}\n"):
        assert split_response(EXACT + ending) == split_response(EXACT)


@pytest.mark.parametrize("ending", ["<|im_end|>x", "x</s>", "<|im_start|>", "<|im_end", "!"])
def test_other_text_after_the_answer_costs_exactness_only(ending):
    parts = split_response(EXACT + ending)
    assert parts.answer == "1 + 2"
    assert not parts.is_exact


def test_an_end_of_text_token_inside_the_answer_belongs_to_it():
    assert split_response("<think>a</think><answer>1</s></answer>").answer == "1</s>"


@given(st.text())
def test_any_text_splits(text):
    assert isinstance(split_response(text), Parts)


@given(st.text(alphabet=st.characters(exclude_categories=[])))
def test_surrogates_and_nul_split(text):
    assert split_response(f"<think>{text}\x00\ud800</think><answer>1</answer>").answer in ("1", None)


def test_only_one_order_of_the_four_tags_gives_an_answer_or_skips_the_opening_one():
    tags = ["<think>", "</think>", "<answer>", "</answer>"]
    orders = [order for length in range(5) for order in itertools.permutations(tags, length)]
    with_answer = {"".join(order) for order in orders if split_response("x".join(order)).answer is not None}
    # `<answer>` inside the thought together with another after it cannot be made of four single tags.
    assert with_answer == {"<think></think><answer></answer>", "</think><answer></answer>"}


@given(st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "a", " ", "</s>"]), max_size=12))
def test_an_answer_means_one_closed_thought_and_one_block_after_it(pieces):
    response = "".join(pieces)
    parts = split_response(response)
    if parts.answer is not None:
        assert response.count("</think>") == 1
        thought, tail = response.split("</think>")
        assert tail.count("<answer>") == tail.count("</answer>") == 1
        assert thought.count("<think>") <= 1
        assert "<think>" not in tail
    if parts.is_exact:
        assert parts.answer
        assert parts.think


def test_a_response_longer_than_the_cap_is_not_read():
    thought = "<think>" + "a" * MAX_RESPONSE + "</think>"
    assert split_response(thought + "<answer>1</answer>") == Parts(None, None, False, False)


@pytest.mark.parametrize(
    "response",
    [
        "a" * 10_000_000,
        "<" * MAX_RESPONSE,
        "</think" * (MAX_RESPONSE // 7),
        "<think>a</think>" + "</answer" * (MAX_RESPONSE // 8 - 10),
        "<think>a</think><answer>" * (MAX_RESPONSE // 24),
        EXACT + "</s>" * (MAX_RESPONSE // 4 - 20),
        EXACT + " " * (MAX_RESPONSE - 100),
        "<think>a</think>" + " " * (MAX_RESPONSE - 100) + "<answer>1</answer>",
        "<think>a</think><answer>" + " " * (MAX_RESPONSE - 100) + "1</answer>",
        "<think>" + " " * (MAX_RESPONSE - 100) + "</think><answer>1</answer>",
    ],
    ids=lambda response: response[:30],
)
def test_no_text_takes_long(response):
    # The claim is 10 ms of an idle machine; what is quadratic takes minutes.
    start = time.process_time()
    split_response(response)
    assert time.process_time() - start < 1
