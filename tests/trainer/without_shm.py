"""A program under DeepSpeed without its kernel for communication between CPUs: `without_shm.py PROGRAM ARGUMENT...`.

DeepSpeed compiles the kernel at the first start on a machine, 45 seconds of two cores. Without it gloo does the same.
"""

import runpy
import sys

import deepspeed.ops

if __name__ == "__main__":
    deepspeed.ops.__compatible_ops__ = {**deepspeed.ops.__compatible_ops__, "deepspeed_shm_comm": False}
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
