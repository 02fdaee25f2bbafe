"""Parameters that a recipe gives its rewards besides their weights."""

from __future__ import annotations

import pytest

from tinyzero_trl.config import checks, compose, rewards
from tinyzero_trl.failures import ConfigError

TINY = "+math=grpo-tiny"


def test_parameters_are_given_by_name_and_the_token_limit_is_the_runs_own():
    cfg = compose([TINY, "rewards.cosine=0.5", "reward_parameters={cosine: {wrong_short: -1.0}}"])
    chosen = checks.parts(cfg)
    found = rewards.parameters(cfg, chosen.rewards)
    assert found == {"accuracy": {}, "cosine": {"wrong_short": -1.0, "max_tokens": cfg.trainer.max_completion_length}}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("{cosin: {max_tokens: 5}}", "no reward 'cosin'.*did you mean cosine"),
        ("{cosine: {max_token: 5}}", "no parameter 'max_token'.*did you mean max_tokens"),
        ("{cosine: {max_tokens: 5.5}}", "cosine.max_tokens must be int, got 5.5"),
        ("{cosine: {wrong_short: low}}", "cosine.wrong_short must be float, got 'low'"),
        ("{cosine: {max_tokens: 0}}", "cosine.max_tokens must be at least 1, got 0"),
        ("{repetition: {ngram_words: 0}}", "repetition.ngram_words must be at least 1, got 0"),
        ("{repetition: {max_penalty: -1.0}}", "repetition.max_penalty must be at least 0, got -1.0"),
        ("{accuracy: {answer: 5}}", "no parameter 'answer'; it has none"),
    ],
)
def test_what_no_reward_takes_is_refused(parameters, message):
    with pytest.raises(ConfigError, match=message):
        checks.parts(compose([TINY, "rewards.cosine=0.5", "rewards.repetition=0.5", f"reward_parameters={parameters}"]))


def test_a_reward_over_groups_wants_whole_groups_in_the_trainer():
    cfg = compose([TINY, "rewards.length=0.5"])
    chosen = checks.parts(cfg)
    rewards.check_groups(cfg, chosen.rewards, num_processes=1)
    split = compose([TINY, "rewards.length=0.5", "trainer.per_device_train_batch_size=4", "trainer.gradient_accumulation_steps=1"])  # fmt: skip
    with pytest.raises(ConfigError, match="length compares whole groups, and the 4 completions"):
        rewards.check_groups(split, chosen.rewards, num_processes=2)
    apart = compose([TINY, "rewards.length=0.5", "reward_workers.rewards=[length]"])
    with pytest.raises(ConfigError, match="computed in the trainer"):
        rewards.check_groups(apart, chosen.rewards, num_processes=1)
