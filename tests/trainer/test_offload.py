"""Tensors that wait in the host's memory are back when they are needed, and no number changes; the moves alone are stood in for on a CPU."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tinyzero_trl.generation.transformers_rollout import transformers_rollout
from tinyzero_trl.trainer import TinyZeroTrainer, offload
from tinyzero_trl.trainer.offload import keep_state_on_host


class TwoPlaces:
    """Says where a tensor would be on a machine with a device: pages that were locked are the host's, all else is the device's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.on_host: dict[int, torch.Tensor] = {}
        self.num_brought = 0
        monkeypatch.setattr(offload, "is_on_device", self.is_on_device)
        monkeypatch.setattr(offload, "locked_like", self.locked_like)
        monkeypatch.setattr(offload, "on_device", self.on_device)

    def is_on_device(self, tensor: torch.Tensor) -> bool:
        return tensor.data_ptr() not in self.on_host

    def locked_like(self, tensor: torch.Tensor) -> torch.Tensor:
        pages = torch.full_like(tensor, -7)
        self.on_host[pages.data_ptr()] = pages
        return pages

    def on_device(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        assert not self.is_on_device(tensor)
        self.num_brought += 1
        return tensor.clone()


def test_the_optimizers_state_is_on_the_device_only_while_it_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.optim.AdamW(
        [torch.nn.Parameter(torch.zeros(1))]
    )  # from now on its step calls the hooks, and so does a subclass's around it
    weights = [torch.nn.Parameter(torch.randn(3, generator=torch.Generator().manual_seed(1))) for _ in range(2)]
    places = TwoPlaces(monkeypatch)
    seen: list[bool] = []

    class Watched(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            seen.extend(places.is_on_device(value) for state in self.state.values() for value in state.values())
            return super().step(closure)

    def trained(is_offloaded: bool) -> list[torch.Tensor]:
        own = [torch.nn.Parameter(weight.detach().clone()) for weight in weights]
        optimizer = Watched(own, lr=0.1)
        if is_offloaded:
            keep_state_on_host(optimizer)
        for step in range(4):
            sum((weight**2).sum() for weight in own).backward()  # type: ignore[union-attr]
            optimizer.step()
            optimizer.zero_grad()
            if step == 1:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            if is_offloaded:
                state = [value for values in optimizer.state.values() for value in values.values()]
                assert len(state) == 6
                assert not any(map(places.is_on_device, state))
        return own

    plain = trained(False)
    assert not places.on_host
    seen.clear()
    ours = trained(True)
    assert len(seen) == 3 * 6
    assert all(seen)
    assert len(places.on_host) == 6  # locked once, whatever the number of steps
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(ours, plain, strict=True))


def test_a_run_is_the_same_bit_for_bit_and_the_reference_is_away_while_completions_are_generated(
    build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    was_away: list[bool] = []

    def sample(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        weights = [parameter.data for parameter in trainer.ref_model.parameters()]
        was_away.extend(not places.is_on_device(weight) for weight in weights)
        return transformers_rollout(prompts, trainer)

    settings = {"beta": 0.1, "max_steps": 3, "learning_rate": 1e-2}
    plain = build(TinyZeroTrainer, rollout_func=transformers_rollout, **settings)
    plain.train()
    places = TwoPlaces(monkeypatch)
    ours = build(TinyZeroTrainer, rollout_func=sample, offload=True, **settings)
    ours.train()
    assert all(was_away)
    assert len(was_away) == 3 * len(list(ours.ref_model.parameters()))
    assert places.num_brought > len(was_away)
    assert all(places.is_on_device(parameter.data) for parameter in ours.ref_model.parameters())
    for (name, mine), theirs in zip(ours.model.named_parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(mine, theirs), name
    kls = [[entry["kl"] for entry in trainer.state.log_history if "kl" in entry] for trainer in (ours, plain)]
    assert kls[0] == kls[1]
    assert max(kls[0]) > 0
