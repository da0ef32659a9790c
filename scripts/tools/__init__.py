# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Programs for those who develop the bundle: benchmarks, planted copies, subsets, and the shipping of weights."""

import os
import platform

import torch


def machine() -> str:
    """Describes what a benchmark ran on: processor, cores, threads and release of PyTorch, instructions."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{platform.machine()}, {cores} cores, {torch.get_num_threads()} threads, PyTorch {torch.__version__}, "
        f"{torch.backends.cpu.get_cpu_capability()}"
    )
