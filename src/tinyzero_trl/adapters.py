"""A LoRA adapter made one with the model below it: a folder that needs neither PEFT nor the base any more."""

from __future__ import annotations

from pathlib import Path

from tinyzero_trl import storage
from tinyzero_trl.model_location import locate


def merge(model_path: str, to: Path) -> Path:
    """Write the merged model of a run, checkpoint or adapter folder to `to`, in the precision of the model below; returns `to`.

    A base that was trained in 4 bits is loaded whole: the adapter learned on its rounded weights, and differs from what
    training saw by that rounding. Raises: ValueError where there is no adapter, or `to` is there already.
    """
    location = locate(model_path)
    if location.adapter is None:
        raise ValueError(f"{model_path} has no adapter: {location.path} is a whole model already")
    if to.exists():
        raise ValueError(f"{to} is there already; choose another folder")
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(location.path, dtype="auto")
    merged = PeftModel.from_pretrained(model, location.adapter).merge_and_unload()
    with storage.replacing_folder(to) as beside:
        merged.save_pretrained(beside)
        AutoTokenizer.from_pretrained(location.adapter).save_pretrained(beside)
    return to
