"""Rows computed end to end do not see each other; a recipe may pack only where attention keeps them apart at no cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from tinyzero_trl.trainer.logprobs import Packed


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_packed_pass_gives_the_log_probabilities_and_gradients_of_a_padded_one(
    tiny_llama: Any, attention: str
) -> None:
    torch.manual_seed(0)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]])
    ids = torch.randint(6, 200, mask.shape)
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :3] = -100
    found = []
    for wrap in (lambda model: model, Packed):
        model = AutoModelForCausalLM.from_pretrained(tiny_llama, attn_implementation=attention)
        add_fused_lm_head(model, temperature=1.0, outputs=("log_probs", "entropy"))
        outputs = wrap(model)(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
        assert outputs.entropy.shape == outputs.log_probs.shape
        (
            outputs.log_probs * torch.arange(1.0, outputs.log_probs.numel() + 1).view_as(outputs.log_probs)
        ).sum().backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        found.append((outputs.log_probs.detach(), outputs.entropy.detach() * (labels[:, 1:] != -100), gradient))
    for padded, packed in zip(*found, strict=True):
        torch.testing.assert_close(packed, padded, atol=2e-5, rtol=1e-4)


def test_a_token_of_one_row_changes_nothing_in_another(tiny_llama: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    add_fused_lm_head(model, temperature=1.0, outputs=("log_probs", "entropy"))
    mask, ids = torch.ones(2, 6, dtype=torch.long), torch.randint(6, 200, (2, 6))
    changed = ids.clone()
    changed[0] = (changed[0] + 1) % 200
    first, second = (
        Packed(model)(input_ids=rows, attention_mask=mask, labels=rows, fused_lm_head=True) for rows in (ids, changed)
    )
    assert not torch.equal(first.log_probs[0], second.log_probs[0])
    assert torch.equal(first.log_probs[1], second.log_probs[1])


@pytest.mark.parametrize("attention", [None, "sdpa", "eager"])
def test_a_recipe_may_not_pack_where_attention_knows_no_row_ends(attention: str | None) -> None:
    from tinyzero_trl.config import check_method, compose
    from tinyzero_trl.failures import ConfigError

    words = ["+countdown=grpo-tiny", "batching.packing=true", "batching.share_prompts=false"]
    words += [f"model.attn_implementation={attention}"] if attention else []
    with pytest.raises(ConfigError, match="batching.packing"):
        check_method(compose(words))
    check_method(compose([*words[:3], "model.attn_implementation=flash_attention_2"]))
