"""Generation by vLLM inside the training process, on the device that trains; correct on CPUs too, where TRL's own is not."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from trl.generation import vllm_generation
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

from tinyzero_trl.config import free_port
from tinyzero_trl.failures import DiskFull
from tinyzero_trl.generation.client import Rows
from tinyzero_trl.generation.lora import WithAdapter, adapter_of
from tinyzero_trl.generation.server import within_limits
from tinyzero_trl.generation.server_generation import replaced
from tinyzero_trl.generation.transfer import repack_heads
from tinyzero_trl.generation.weights import WeightFolder, raise_together


class SeededLLM(LLM):
    """vLLM's engine with a seed for each prompt."""

    rows = Rows()
    adapter: LoRARequest | None = None
    """The adapter with which completions are generated."""
    is_kept_awake = False
    owes_sleep = False
    """True if `sleep` was called while the engine is kept awake."""

    def sleep(self, *args: Any, **kwargs: Any) -> Any:
        """LLM.sleep, put off while the engine is kept awake."""
        if self.is_kept_awake:
            self.owes_sleep = True
            return None
        return super().sleep(*args, **kwargs)

    def wake_up(self, *args: Any, **kwargs: Any) -> Any:
        """LLM.wake_up, unless the engine is awake because its sleep was put off."""
        return None if self.owes_sleep else super().wake_up(*args, **kwargs)

    def generate(self, prompts: Any, sampling_params: Any = None, **kwargs: Any) -> Any:
        """LLM.generate with the settings in `rows`: a seed for each prompt, tokens and strings that end a completion."""
        if isinstance(sampling_params, SamplingParams):
            sampling_params = self._for_each(sampling_params, len(prompts))
        return super().generate(prompts, sampling_params=sampling_params, lora_request=self.adapter, **kwargs)

    def _for_each(self, shared: SamplingParams, num: int) -> list[SamplingParams]:
        seeds: Sequence[int | None] = self.rows.seeds or [None] * num
        each = []
        for seed in seeds:
            params = shared.clone()
            params.seed = seed
            params.stop_token_ids = list(self.rows.eos_token_ids)
            if self.rows.stop:
                params.stop, params.include_stop_str_in_output = list(self.rows.stop), True
            # The trainer decodes the tokens itself; vLLM needs text only to find stop strings.
            params.detokenize = bool(params.stop)
            # Lists of numbers instead of an object for each token.
            params.flat_logprobs = True
            each.append(params)
        return each


class ColocatedGeneration(WithAdapter):
    """TRL's colocate mode with our seeds; on a CPU with its own engine settings and its own transfer of weights."""

    llm: SeededLLM
    is_ahead = False
    num_faults = 0

    def __init__(self, *args: Any, engine: dict[str, Any], adapters: WeightFolder | None = None, **kwargs: Any):
        """engine: arguments of vLLM's LLM that TRL does not set. adapters: folder in which adapters are handed over; None: whole weights are."""
        self._engine = engine
        self._adapters = adapters
        self.weights_step = -1
        self.seconds_to_sync = 0.0
        self._rows = Rows()
        self._step = -1
        super().__init__(*args, **kwargs)

    def prepare(
        self,
        *,
        seeds: Sequence[int],
        eos_token_ids: Sequence[int],
        stop: Sequence[str] = (),
        temperature: float,
        step: int,
    ) -> None:
        """Set the sampling of this process's next rollout; called before the weights are synchronised for it."""
        # With tensor parallelism each process of a group generates the rows of the whole group, and vLLM's own seed keeps their draws equal.
        self._rows = Rows(list(seeds) if self.tensor_parallel_size == 1 else None, list(eos_token_ids), list(stop))
        self.temperature, self._step = temperature, step

    def _init_vllm(self) -> None:
        # By default TRL takes port 29500 if nothing listens there yet, but another launcher may take it a moment later.
        if not os.environ.get("MASTER_PORT"):
            os.environ["MASTER_PORT"] = str(free_port())
        with replaced(vllm_generation, "LLM", lambda **given: SeededLLM(**within_limits({**given, **self._engine}))):
            super()._init_vllm()

    def sync_weights(self) -> None:
        start = time.perf_counter()
        if self._adapters is not None:
            self._load_adapter(self._adapters)
        elif self.accelerator.device.type == "cpu":
            # TRL would load parameter by parameter into layers whose tensors vLLM has packed and freed on a CPU.
            runner = self.llm.llm_engine.model_executor.driver_worker.model_runner
            runner.reload_weights(weights_iterator=self._iter_named_params())
            repack_heads(runner.model)
            self._reset_prefix_cache()
        else:
            super().sync_weights()
        self.weights_step = self._step
        self.seconds_to_sync = time.perf_counter() - start

    def _load_adapter(self, folder: WeightFolder) -> None:
        failure: DiskFull | None = None
        with adapter_of(self) as (config, parameters):
            try:
                path = folder.write_adapter(config, parameters)
            except DiskFull as full:
                failure = full
        try:
            raise_together(failure)
            request = LoRARequest("policy", 1, str(path))
            self.llm.llm_engine.add_lora(LoRARequest("policy", 1, str(path), load_inplace=True))
        finally:
            folder.remove_files()
        # vLLM distinguishes cached prefixes by the path of their adapter.
        self.llm.adapter = request
        self._reset_prefix_cache()

    def _reset_prefix_cache(self) -> None:
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM keeps the prefix cache of other weights")

    def generate(self, prompts: Any, images: Any, num_generations: int, profiler: Any = None) -> Any:
        self.llm.rows = self._rows
        generated = super().generate(prompts, images, num_generations, profiler)
        if self.llm.owes_sleep:
            self._llm_weights_sleeping = False  # otherwise TRL would transfer all weights again
        return generated

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Within the block vLLM stays awake, so that its rollouts need one transfer of weights; it sleeps at the end."""
        if not self.enable_sleep_mode or self.llm.is_kept_awake:
            yield
            return
        self.llm.is_kept_awake = True
        try:
            yield
        finally:
            self.llm.is_kept_awake = False
            if self.llm.owes_sleep:
                self.llm.owes_sleep = False
                self.llm.sleep(level=2)
                self._llm_weights_sleeping = True
