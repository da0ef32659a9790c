# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest

from bundle.training.core import every_kimg
from bundle.training.memory import TooLittleMemory
from bundle.training.stylegan2_trainer import StyleGAN2Trainer
from tests.training.conftest import NewTrainer


def test_every_kimg_and_at_the_end(new_trainer: NewTrainer) -> None:
    trainer, seen = new_trainer(), []  # 6 iterations of 4 images
    every_kimg(trainer, 0.010, lambda engine: seen.append(engine.images_seen))
    trainer.run()
    assert seen == [12, 20, 24]


def test_lack_of_memory_is_told_with_the_cure(new_trainer: NewTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*arguments: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] data. DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(StyleGAN2Trainer, "_train_generator", no_memory)
    with pytest.raises(TooLittleMemory, match=r"The training of the GAN ran out of memory\. Give a smaller batch_size"):
        new_trainer().run()
