# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Which pairs have been walked and which of their points may leave: what a broken-off run goes on from."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from torch import Tensor

from bundle.files import atomic_write, write_json
from bundle.gate.gate import Verdict

__all__ = ["CohortError", "WalkLedger"]

# Blocks that are walked for a class beyond what it would take if every point passed, times this, before giving up.
PATIENCE = 10
# What the gate says of each point.
VERDICT = tuple(field.name for field in dataclasses.fields(Verdict))


class CohortError(ValueError):
    """A cohort that cannot be made, or is not what it should be."""


class WalkLedger:
    """One file for each walked pair.

    Several processes share a ledger: each is dealt whole blocks, and all meet when they have walked them. A process
    that dies leaves the pairs that it has finished; whoever opens the ledger next goes on from there.

    Args:
        folder: where the files are; private, since a path's points that did not pass are among them.
        settings: all options that the bits of the cohort depend on.
        quotas: images wanted of each class, by label.
        n_points: points of a path.
        block_size: pairs that are walked together.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        settings: dict[str, Any],
        quotas: dict[int, int],
        n_points: int,
        block_size: int,
    ) -> None:
        self.folder = Path(folder)
        self.settings = settings
        self.quotas = quotas
        self.n_points = n_points
        self.block_size = block_size
        self._counts: dict[tuple[int, int], dict[str, int]] = {}
        self._dealt: list[tuple[int, int]] = []

    def open(self) -> None:
        """Claims the folder for these settings, or takes up what an earlier run with the same settings left.

        Raises:
            CohortError: the folder belongs to a run with other settings.
        """
        claim = self.folder / "settings.json"
        if claim.exists():
            found = json.loads(claim.read_text(encoding="utf-8"))
            wanted = json.loads(json.dumps(self.settings))
            differing = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
            if differing:
                raise CohortError(
                    f"{self.folder.parent.parent} holds a cohort made with other options ({', '.join(differing)}), "
                    f"which is not overwritten. Name another output_dir, or remove that folder."
                )
        else:
            write_json(claim, self.settings)
        self.refresh()

    def refresh(self) -> None:
        """Takes notice of the pairs that other processes have finished since."""
        for path in sorted(self.folder.glob("pair_*.pt")):
            _, label, index = path.stem.split("_")
            pair = int(label), int(index)
            if pair not in self._counts:
                self._counts[pair] = _counted(self._read(*pair))

    def next_block(self) -> tuple[int, int] | None:
        """Returns the class and number of the block that this process is to walk next, or None.

        When a process has walked what it was dealt, it waits for the others, and all are dealt what is still due.

        Raises:
            CohortError: hardly anything passes the gate.
        """
        while not self._dealt:
            idist.barrier()
            self.refresh()
            idist.barrier()  # nobody adds to the folder before everybody has read the same
            due = self.due()
            if not due:
                return None
            self._dealt = due[idist.get_rank() :: idist.get_world_size()]
        return self._dealt.pop(0)

    def due(self) -> list[tuple[int, int]]:
        """Lists class and number of the blocks that are needed even if every point of theirs should pass.

        Raises:
            CohortError: hardly anything passes the gate.
        """
        blocks = []
        for label, quota in self.quotas.items():
            passed, known, block = 0, 0, 0
            while passed < quota:
                pairs = [(label, index) for index in self._indices(block)]
                if all(pair in self._counts for pair in pairs):
                    number = sum(self._counts[pair]["passed"] for pair in pairs)
                    known += number
                    passed += number
                else:
                    self._check_patience(label, quota, block, known)
                    passed += self.n_points * self.block_size
                    blocks.append((label, block))
                block += 1
        return blocks

    def add(self, label: int, index: int, record: dict[str, Tensor]) -> None:
        """Keeps the outcome of a pair.

        Args:
            label: class of the pair.
            index: number within the class.
            record: ``image`` uint8 [N, H, W(, 3)], ``w`` and ``w_linear`` [N, w_dim], ``course`` [steps], and the
                gate's ``passed``, ``recognised`` and ``mislabelled`` [N].
        """
        with atomic_write(self._path(label, index)) as temporary:
            torch.save(record, temporary)
        self._counts[label, index] = _counted(record)

    def records(self, label: int) -> Iterator[dict[str, Tensor]]:
        """Yields the outcomes of the blocks that the class's images come from, in the order of the pairs."""
        for index in self._taken(label):
            yield self._read(label, index)

    def images(self, label: int) -> Iterator[Tensor]:
        """Yields the images of a class that leave, uint8 [H, W] or [H, W, 3], as many as are wanted."""
        left = self.quotas[label]
        for record in self.records(label):
            for image in record["image"][record["passed"]][:left]:
                yield image
                left -= 1
            if left == 0:
                return

    def counts(self, label: int) -> dict[str, int]:
        """Sums the gate's verdicts over the class's pairs."""
        counts = [self._counts[label, index] for index in self._taken(label)]
        return {key: sum(pair[key] for pair in counts) for key in ("judged", *VERDICT)}

    def done(self) -> tuple[int, int]:
        """Images that have passed so far, at most the quota of each class, and images wanted."""
        passed = dict.fromkeys(self.quotas, 0)
        for (label, _), counts in self._counts.items():
            passed[label] += counts["passed"]
        return sum(min(passed[label], quota) for label, quota in self.quotas.items()), sum(self.quotas.values())

    def _check_patience(self, label: int, quota: int, block: int, passed: int) -> None:
        needed = -(-quota // (self.n_points * self.block_size))
        if block >= PATIENCE * needed:
            share = passed / (block * self.block_size * self.n_points)
            raise CohortError(
                f"After {block * self.block_size} paths only {passed} of {quota} images of class {label} have passed "
                f"the gate ({share:.1%} of the points). The generator shows patients or the wrong class too often: see "
                f"the counts of gate_identity and gate_class in {self.folder}, train longer or ask for fewer images."
            )

    def _taken(self, label: int) -> Iterator[int]:
        """Yields the numbers of the pairs that the class's images come from: whole blocks, until there are enough."""
        passed, block = 0, 0
        while passed < self.quotas[label]:
            for index in self._indices(block):
                yield index
                passed += self._counts[label, index]["passed"]
            block += 1

    def _indices(self, block: int) -> Sequence[int]:
        return range(block * self.block_size, (block + 1) * self.block_size)

    def _path(self, label: int, index: int) -> Path:
        return self.folder / f"pair_{label}_{index:06d}.pt"

    def _read(self, label: int, index: int) -> dict[str, Tensor]:
        record: dict[str, Tensor] = torch.load(self._path(label, index), map_location="cpu", weights_only=True)
        return record


def _counted(record: dict[str, Tensor]) -> dict[str, int]:
    """Sums the gate's verdicts on a pair."""
    return {"judged": len(record["passed"]), **{key: int(record[key].sum()) for key in VERDICT}}
