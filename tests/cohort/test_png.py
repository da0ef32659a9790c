# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bundle.cohort.png import SavePNGd


def test_writes_grey_and_colour_upright(tmp_path: Path) -> None:
    save = SavePNGd("pred", tmp_path)
    grey = torch.linspace(-1, 1, 6).view(1, 2, 3)
    item: dict[Hashable, Any] = {"pred": grey, "name": "000000", "label": 1}
    assert save(item)["label"] == 1
    save({"pred": grey.expand(3, 2, 3), "name": "000001"})
    with Image.open(tmp_path / "000000.png") as image:
        assert image.mode == "L"
        assert np.asarray(image).tolist() == [[0, 51, 102], [153, 204, 255]]
    with Image.open(tmp_path / "000001.png") as image:
        assert (image.mode, image.size) == ("RGB", (3, 2))
    assert len(list(tmp_path.iterdir())) == 2
