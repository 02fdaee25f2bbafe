"""A LoRA adapter learns in float32 and gets its whole gradient, whatever the weights below it are stored in."""

from __future__ import annotations

from typing import Any

import torch
from trl import GRPOTrainer


class Adapter(GRPOTrainer):
    """Undoes TRL's cast of an adapter on quantized weights to bfloat16, and keeps bitsandbytes from a form without gradients.

    Reinforcement learning takes steps of 1e-5 and less. A bfloat16 number of 0.004 has its neighbours 3e-5 away, so there such a step
    is rounded to none, and the adapter stands still once it has begun to matter. QLoRA, which TRL follows, takes steps
    of 2e-4 (arXiv 2305.14314, sec. 4). Costs 2 bytes a weight of the adapter; products stay in half precision by autocast.

    On CPUs with AVX512-BF16, bitsandbytes 0.50.2 packs 4-bit weights anew in the first pass of generation, and has no backward pass for
    that form: from then on only the adapter's last maps would get a gradient, with no more than a warning of torch's.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # DeepSpeed's optimizer has float32 masters of its own.
        if hasattr(self.model, "peft_config") and self.accelerator.state.deepspeed_plugin is None:
            for parameter in self.model.parameters():
                if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
                    parameter.data = parameter.data.float()
        for module in self.model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
