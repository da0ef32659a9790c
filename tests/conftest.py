# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""What tests of every stage share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.models import squeezenet1_1

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images and reference weights beside the checkout."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the real images and reference weights of {folder}, which are not part of the bundle")
    return folder


@pytest.fixture(scope="session")
def trunk_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SqueezeNet 1.1 weights as torchvision publishes them, but random: LPIPS and KID without a download."""
    path = tmp_path_factory.mktemp("trunk") / "squeezenet1_1.pth"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(squeezenet1_1(weights=None).state_dict(), path)
    return path
