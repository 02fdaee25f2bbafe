"""One process of several, which does all that FOLDER/todo.json says: `program.py FOLDER`.

Runs of grpo.py one after the other, TRL's trainer beside ours (parity.json), what bfloat16 loses of sums (sums.json, DeepSpeed), merged adapters (ZeRO-3), and under ddp a run stopped by a signal, the
advantages of every algorithm (advantages.pt) and a value model (learned.*): in one process group, so that the libraries are imported and it is made once.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")


def main(folder: Path) -> None:
    # Not at the top: the processes in which rewards are computed import this file.
    import critic_program
    import estimators_program
    import lora_program
    import parity_program
    import resume_program
    import torch
    from accelerate import Accelerator, PartialState
    from accelerate.state import AcceleratorState

    from tinyzero_trl import grpo, trainer

    todo = json.loads((folder / "todo.json").read_text())
    rank = os.environ["RANK"]

    class Watched(trainer.TinyZeroTrainer):
        """In the run `spoiled`, a loss that is not finite in step 2 on process 1; of each critic, the digest it ends with."""

        def _compute_loss(self, model: Any, inputs: Any) -> Any:
            is_run = self.model.training and Path(self.args.output_dir).name == "spoiled"
            is_spoiled = is_run and self.state.global_step + 1 == 2 and rank == "1"
            return super()._compute_loss(model, inputs) + (torch.inf if is_spoiled else 0.0)

        def train(self, *arguments: Any, **settings: Any) -> None:
            if self.is_deepspeed_enabled:
                of_deepspeed = self.accelerator.state.deepspeed_plugin.deepspeed_config
                assert of_deepspeed["data_types"] == {"grad_accum_dtype": "fp32"}
            super().train(*arguments, **settings)
            if self.algorithm == "ppo":
                content = b"".join(value.numpy().tobytes() for value in self.critic.learner.model.state_dict().values())
                digest = hashlib.sha256(content).hexdigest()
                (Path(self.args.output_dir) / f"critic.{rank}").write_text(digest)

    end, trainer.TinyZeroTrainer = AcceleratorState.destroy_process_group, Watched
    AcceleratorState.destroy_process_group = lambda *ignored: None  # a run ends the group, and the next needs it
    for name, words in todo["runs"].items():
        assert grpo.train(words) == 0, name
    found = parity_program.compared(todo["model"], todo["parity"])
    if PartialState().is_main_process:
        (folder / "parity.json").write_text(json.dumps(found))
    if not todo["is_ddp"]:
        sums = parity_program.sums_in_bfloat16(todo["model"])
        if PartialState().is_main_process:
            (folder / "sums.json").write_text(json.dumps(sums))
    if todo["is_zero3"]:
        merged = lora_program.merged(todo["model"])
        (folder / f"merged.{rank}.json").write_text(json.dumps(merged))
    if todo["is_ddp"]:
        resume_program.stopped_and_resumed(todo["model"], folder)
        advantages = estimators_program.all_advantages(Accelerator(cpu=True))
        if PartialState().is_main_process:
            torch.save(advantages, folder / "advantages.pt")
        torch.save(critic_program.learned(todo["model"], ranks=(int(rank),)), folder / f"learned.{rank}")
    PartialState().wait_for_everyone()
    AcceleratorState.destroy_process_group = end
    PartialState().destroy_process_group()
    # What many engines of DeepSpeed leave of their groups has threads; Python's own way out would abort, now and then, over one of them.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
