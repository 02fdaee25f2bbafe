"""The trainer's side of a weight transfer by NCCL: parameters are gathered into a bucket, then the bucket is sent, with a deadline.

vLLM's own sender reads the parameters inside its side streams. Under ZeRO-3 and FSDP2 reading gathers, and a collective of the
trainer's between two broadcasts deadlocks with more than two ranks (trl#6797). NCCL has no deadline either: a broadcast to a peer
that died returns only when its communicator is aborted.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, TypeVar

import torch

BUCKET_BYTES = 2**30
"""A bucket ends with the parameter that makes it larger than this. vLLM's receiver uses the same rule and size; otherwise both sides wait."""
SECONDS_TO_ABORT = 10.0
"""Seconds that a thread has to return from an aborted communicator."""
Metadata = Sequence[tuple[str, str, Sequence[int]]]
"""Name, dtype ("bfloat16") and shape of each parameter, in the order of sending."""
Result = TypeVar("Result")


def bucket_sizes(metadata: Metadata, *, bucket_bytes: int = BUCKET_BYTES) -> list[tuple[int, int]]:
    """Number of parameters and of bytes in each bucket.

    >>> bucket_sizes([("a", "float32", [2]), ("b", "bfloat16", [4]), ("c", "float32", [])], bucket_bytes=8)
    [(2, 16), (1, 4)]
    """
    sizes, num_params, num_bytes = [], 0, 0
    for _, dtype, shape in metadata:
        num_params, num_bytes = num_params + 1, num_bytes + math.prod(shape) * getattr(torch, dtype).itemsize
        if num_bytes > bucket_bytes:
            sizes.append((num_params, num_bytes))
            num_params, num_bytes = 0, 0
    return [*sizes, (num_params, num_bytes)] if num_params else sizes


def buckets(
    metadata: Metadata,
    named_params: Iterator[tuple[str, torch.Tensor]],
    *,
    device: torch.device | str,
    bucket_bytes: int = BUCKET_BYTES,
) -> Iterator[torch.Tensor]:
    """The bytes of the parameters, bucket by bucket; each bucket is a finished copy when it is yielded."""
    for num_params, num_bytes in bucket_sizes(metadata, bucket_bytes=bucket_bytes):
        bucket = torch.empty(num_bytes, dtype=torch.uint8, device=device)
        at = 0
        for _ in range(num_params):
            _, parameter = next(named_params)
            content = parameter.detach().reshape(-1).view(torch.uint8)
            bucket[at : at + len(content)].copy_(content)
            at += len(content)
        _finish_work_on(bucket.device)
        yield bucket
        del bucket  # frees it before the next is allocated: each takes a GiB of the device that trains


def send(communicator: Any, bucket: torch.Tensor, *, receiving: Future[Any], until: float) -> None:
    """Broadcast a bucket, and return when all receivers have it.

    receiving: the server's answer to the whole transfer; if that failed, nobody receives the bucket.
    until: deadline on the clock of time.monotonic(), after which the communicator is aborted.
    Raises: TimeoutError, the error of `receiving`, or NCCL's as a RuntimeError; the communicator is then destroyed.
    """

    def broadcast() -> None:
        if bucket.device.type == "cuda":
            torch.cuda.set_device(bucket.device)  # each thread has a current device of its own
        communicator.broadcast(bucket, src=0)
        _finish_work_on(bucket.device)

    sending = in_thread(broadcast)
    try:
        if receiving in wait_for([sending, receiving], until=until):
            receiving.result()  # raises if the server failed
        wait_for([sending], until=until)
        sending.result()
    except BaseException:
        communicator.destroy()  # ncclCommAbort, so that a thread that hangs in NCCL returns
        wait([sending], timeout=SECONDS_TO_ABORT)
        raise


def in_thread(work: Callable[[], Result]) -> Future[Result]:
    """The future result of work that may never end; its thread does not keep the process alive."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # raised again by future.result()
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def wait_for(futures: Sequence[Future[Any]], *, until: float) -> set[Future[Any]]:
    """The futures that are done, at least one. Raises: TimeoutError if none is done at `until` (time.monotonic())."""
    done, _ = wait(futures, timeout=max(0.0, until - time.monotonic()), return_when=FIRST_COMPLETED)
    if not done:
        raise TimeoutError
    return done


def _finish_work_on(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
