# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Developer tools: benchmarks, planted copies, subsets of data sets, shipping of weights."""

import os
import platform

import torch


def machine() -> str:
    """Returns a description of the machine: processor, cores, threads, PyTorch release and CPU instruction set."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{platform.machine()}, {cores} cores, {torch.get_num_threads()} threads, PyTorch {torch.__version__}, "
        f"{torch.backends.cpu.get_cpu_capability()}"
    )
