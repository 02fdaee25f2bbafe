"""Prompts for mathematics problems: the wordings of the field, by name."""

from __future__ import annotations

from typing import Any

from tinyzero_trl.task import FormatFn, Row

BOXED = r"Please reason step by step, and put your final answer within \boxed{}."

PLAIN = "Question:\n{problem}\nAnswer:\nLet's think step by step.\n"
"""Source: SimpleRL-Zoo (arXiv 2503.18892), the simple prompt, for models that follow instructions poorly."""

R1 = (
    "A conversation between User and Assistant. The User asks a question, and the Assistant solves it. The Assistant "
    "first thinks about the reasoning process in the mind and then provides the User with the answer. The reasoning "
    "process is enclosed within <think> </think> and answer is enclosed within <answer> </answer> tags, respectively, "
    "i.e., <think> reasoning process here </think> <answer> answer here </answer>.\nUser: {problem}\nAssistant: <think>"
)
"""Source: DeepSeek-R1 (arXiv 2501.12948), table 1, with the open thought of Dr. GRPO (arXiv 2503.20783), appendix."""


def base(row: Row) -> Row:
    """Plain text for base models that does not prescribe the form of the answer."""
    return {"prompt": PLAIN.replace("{problem}", row["problem"]), "prefill": ""}


def none(row: Row) -> Row:
    """The bare problem. Source: Dr. GRPO (arXiv 2503.20783), table 1: best for Qwen2.5-Math base models."""
    return {"prompt": row["problem"], "prefill": ""}


def boxed(row: Row) -> Row:
    """Chat messages without a system prompt; the instruction follows the problem, as in SimpleRL-Zoo."""
    return {"prompt": messages_of(row["problem"], None, "{problem}\n" + BOXED), "prefill": ""}


def qwen_math(row: Row) -> Row:
    """Chat messages with the system prompt of Qwen2.5-Math (arXiv 2409.12122)."""
    return {"prompt": messages_of(row["problem"], BOXED, "{problem}"), "prefill": ""}


def r1(row: Row) -> Row:
    """The plain text of R1-Zero, which ends inside an open `<think>`."""
    return {"prompt": R1.replace("{problem}", row["problem"]), "prefill": "<think>"}


def deepseek_distill(row: Row) -> Row:
    """Chat messages for R1's distilled models: no system prompt, and the answer starts with `<think>`, as their card recommends."""
    thought = {"role": "assistant", "content": "<think>\n"}
    return {"prompt": [*boxed(row)["prompt"], thought], "prefill": "<think>\n"}


FORMATS: dict[str, FormatFn] = {
    "base": base,
    "none": none,
    "boxed": boxed,
    "qwen-math": qwen_math,
    "r1": r1,
    "deepseek-distill": deepseek_distill,
}


def format_math(example: Row, system_prompt: str | None, instruction: str, tokenizer: Any) -> Row:
    """{"prompt", "problem", "answer"} with the prompt as text, in the tokenizer's chat template if it has one.

    instruction: has `{problem}` once; other braces, as in `\\boxed{}`, are kept. Without a chat template, system prompt and
    instruction are joined by an empty line. The prompt has no BOS if the tokenizer adds one when it reads the text.

    Raises: ValueError if `instruction` has no `{problem}`.
    """
    messages = messages_of(example["problem"], system_prompt, instruction)
    if tokenizer.chat_template is None:
        prompt = "\n\n".join(message["content"] for message in messages)
    else:
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        bos = tokenizer.bos_token
        if bos and prompt.startswith(bos) and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id:
            prompt = prompt.removeprefix(bos)
    return {"prompt": prompt, "problem": example["problem"], "answer": example["answer"]}


def messages_of(problem: str, system_prompt: str | None, instruction: str) -> list[dict[str, str]]:
    """The chat messages for `problem`. Raises: ValueError if `instruction` does not have exactly one `{problem}`."""
    if instruction.count("{problem}") != 1:
        raise ValueError(f"an instruction holds {{problem}} exactly once, got {instruction!r}")
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    # str.format would fail on the braces of \boxed{} and of problems.
    return [*system, {"role": "user", "content": instruction.replace("{problem}", problem)}]
