"""A `rollout_func` for TRL on our sampler: without vLLM, training generates as evaluation does."""

from __future__ import annotations

from typing import Any

from trl.models import unwrap_model_for_generation

from tinyzero_trl.generation.sampler import sample


def transformers_rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
    """Token ids of the prompts and of one sampled completion each, with log-probabilities.

    TRL has repeated each prompt `num_generations` times. Settings and seeds are the trainer's; each row has its own seed, so that a
    completion depends neither on the number of processes nor on earlier rollouts.
    """
    prompt_ids, _, _ = trainer._tokenize_prompts(prompts)
    args = trainer.args
    temperature = args.temperature if trainer.rollout_temperature is None else trainer.rollout_temperature
    seeds = trainer.next_row_seeds(len(prompts))
    with unwrap_model_for_generation(
        trainer.model_wrapped,
        trainer.accelerator,
        gather_deepspeed3_params=args.ds3_gather_for_generation,
        gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs,
    ) as model:
        is_training = model.training
        model.eval()
        sampled = sample(
            model,
            prompt_ids,
            max_new_tokens=args.max_completion_length,
            temperature=temperature,
            seeds=seeds,
            eos_token_ids=trainer.eos_token_ids,
            pad_token_id=trainer.processing_class.pad_token_id,
            stop=trainer.stop_strings,
        )
        model.train(is_training)
    trainer.weights_step = trainer.state.global_step
    return {"prompt_ids": prompt_ids, "completion_ids": sampled.completion_ids, "logprobs": sampled.logprobs}
