"""TinyZero-TRL: language models that learn to reason by reinforcement learning, on TRL.

One import gives what a task, a format or a reward of one's own is made of, and what starts a run:

    from tinyzero_trl import Outcome, Problems, Task, Verdict, exact_format, load_rows, split_response, without_answer
    from tinyzero_trl import evaluate, train

    run = train("countdown/grpo-tiny", "trainer.max_steps=10")     # a child process, as `tinyzero train` starts it
    run.metrics.plot(x="step", y="accuracy")                       # pandas
    evaluate(run.model, "countdown", num_problems=256).metrics     # each figure with its 95 % interval

A name is imported from its room when it is first used, so `import tinyzero_trl` loads no library.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinyzero_trl.answer import Parts, split_response
    from tinyzero_trl.api import Evaluation, Run, evaluate, train
    from tinyzero_trl.data import Problems, load_rows, split_of_key
    from tinyzero_trl.expression import Expression, parse
    from tinyzero_trl.failures import Failure
    from tinyzero_trl.rewards import GroupReward, exact_format, ladder
    from tinyzero_trl.task import FormatFn, Outcome, RewardFn, Row, Task, Verdict, without_answer

__version__ = "0.1.0"
__all__ = [
    "Evaluation",
    "Expression",
    "Failure",
    "FormatFn",
    "GroupReward",
    "Outcome",
    "Parts",
    "Problems",
    "RewardFn",
    "Row",
    "Run",
    "Task",
    "Verdict",
    "evaluate",
    "exact_format",
    "ladder",
    "load_rows",
    "parse",
    "split_of_key",
    "split_response",
    "train",
    "without_answer",
]
_NAMES = {
    "answer": "Parts split_response",
    "api": "Evaluation Run evaluate train",
    "data": "Problems load_rows split_of_key",
    "expression": "Expression parse",
    "failures": "Failure",
    "rewards": "GroupReward exact_format ladder",
    "task": "FormatFn Outcome RewardFn Row Task Verdict without_answer",
}
"""Names by the room they are imported from when they are first used; the imports above are the same, for type checkers and editors."""
_ROOM = {name: room for room, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _ROOM:
        raise AttributeError(f"module 'tinyzero_trl' has no attribute {name!r}")
    value = getattr(import_module(f"tinyzero_trl.{_ROOM[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# peft imports bitsandbytes wherever it is installed, which on a CPU then warns that a faster product of 4-bit weights is not.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
