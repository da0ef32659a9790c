# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Record of the walked pairs and of the gate's decisions on their points, from which an interrupted run resumes."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from torch import Tensor

from bundle.cohort.distinct import DistinctImages
from bundle.cohort.even import even_shares, spread_places
from bundle.files import content_digest, private_folder, save_tensors, sweep_temporary, write_json
from bundle.gate.gate import GateDecision

__all__ = ["LEAST_SHARE", "CohortError", "WalkLedger", "differing_keys"]

logger = logging.getLogger(__name__)

# A run gives up on a class after PATIENCE times the blocks that it would take if every point could be released, once
# less than LEAST_SHARE of the points can be.
PATIENCE, LEAST_SHARE = 10, 0.02
# Names of the gate's decisions on each point.
VERDICT = tuple(field.name for field in dataclasses.fields(GateDecision) if field.name != "features")
# Largest number of blocks assigned to a process between two synchronisations; bounds the memory of a long plan.
DEALT = 64
# Entry of a pair's file that binds its content to the run and to the pair.
SEAL = "seal"
# Entry of settings.json that holds the hash of all others.
SETTINGS_SHA256 = "settings_sha256"


class CohortError(ValueError):
    """A cohort that cannot be made or does not match its description."""


class WalkLedger:
    """Stores one file for each walked pair.

    Several processes can share a ledger: each is assigned whole blocks, and all synchronise after walking them. If a
    process dies, its finished pairs stay, and the next run resumes from them.

    Args:
        folder: folder of the files; private, since they include points that did not pass the gate.
        settings: all options that the bits of the cohort depend on; ``classes`` names the classes of the quotas.
        quotas: number of images wanted of each class, by label.
        n_points: points per path, both ends included.
        block_size: pairs that are walked together.
        apart: for each label the distance below which two images are near-duplicates, of which one is left out.
        n_pairs: for each label the number of pairs that there are; None if they never run out.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        settings: dict[str, Any],
        quotas: dict[int, int],
        n_points: int,
        block_size: int,
        apart: Sequence[float],
        n_pairs: Mapping[int, int] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.settings = settings
        self.quotas = quotas
        self.n_points = n_points
        #: Points of a path that can be released: all but its two ends.
        self.released = n_points - 2
        self.block_size = block_size
        self.n_pairs = n_pairs
        self._names = dict(zip(quotas, settings.get("classes", quotas), strict=False))
        self._claim = self.folder / "settings.json"
        self._settings_sha256 = content_digest(settings, 64)
        self._counts: dict[tuple[int, int], dict[str, int]] = {}
        # Sums of these counts over the pairs of each class: the progress bar asks for them at every step of a walk.
        self._sums: dict[int, Counter[str]] = {label: Counter() for label in quotas}
        self._distinct = {label: DistinctImages(apart[label]) for label in quotas}
        # For each class, which points of its first pairs are kept; and what is known of pairs behind the first gap.
        self._kept: dict[int, list[Tensor]] = {label: [] for label in quotas}
        self._waiting: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._dealt: list[tuple[int, int]] = []
        self._current: int | None = None

    def open(self) -> None:
        """Claims the folder for these settings, or resumes what an earlier run with the same settings left.

        Files of pairs that are damaged or of another run are removed with a warning; their pairs are walked again.

        Raises:
            CohortError: the folder belongs to a run with other settings, or its pairs to an unknown run.
        """
        if idist.get_rank() == 0:
            private_folder(self.folder)
            sweep_temporary(self.folder)
            self._check_claim()
            for path in sorted(self.folder.glob("pair_*.pt")):
                self._count(path, discard=True)
        idist.barrier()
        if not self._claim.exists():
            write_json(self._claim, {**self.settings, SETTINGS_SHA256: self._settings_sha256})
        self.refresh()

    def _check_claim(self) -> None:
        cure = f"Remove {self.folder} to walk them anew, or name another output_dir."
        if not os.path.lexists(self._claim):
            if next(self.folder.glob("pair_*.pt"), None) is not None:
                raise CohortError(
                    f"{self._claim} is gone, and nothing says which run the pairs beside it are of. {cure}"
                )
            return
        try:
            if not stat.S_ISREG(self._claim.lstat().st_mode):
                raise ValueError
            found = json.loads(self._claim.read_text(encoding="utf-8"))
            sha256 = found.pop(SETTINGS_SHA256)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CohortError(
                f"{self._claim} is damaged or of another release, and nothing else says which run the pairs beside it "
                f"are of. {cure}"
            ) from error
        if content_digest(found, 64) != sha256:
            raise CohortError(f"{self._claim} was edited after the pairs beside it were walked. {cure}")
        differing = differing_keys(found, self.settings)
        if differing:
            raise CohortError(
                f"{self.folder.parent.parent} holds a cohort made with other options ({', '.join(differing)}), "
                f"which is not overwritten. Name another output_dir, or remove that folder."
            )

    def refresh(self) -> None:
        """Counts the pairs that other processes have finished in the meantime."""
        for path in sorted(self.folder.glob("pair_*.pt")):
            self._count(path)

    def _count(self, path: Path, discard: bool = False) -> None:
        """Counts the gate's decisions on a pair, unless its file is not one that this run wrote."""
        match = re.fullmatch(r"pair_(0|[1-9]\d*)_(\d{6,})\.pt", path.name, re.ASCII)
        pair = (int(match[1]), int(match[2])) if match else None
        if pair in self._counts:
            return
        if pair is None or pair[0] not in self.quotas or path != self._path(*pair):
            problem: str | None = "its name is not one that this run gives"
        else:
            record, problem = self._read(*pair)
            if problem is None:
                self._note(*pair, record)
        if discard and problem is not None:
            logger.warning("%r is removed, and the pair walked anew where it is needed: %s.", str(path), problem)
            path.unlink()

    def _note(self, label: int, index: int, record: dict[str, Tensor]) -> None:
        kept = self._kept[label]
        if index < len(kept):
            return  # a block that is not complete is walked again, to the same outcome
        self._enter(label, index, _counted(record))
        self._waiting[label, index] = (record["features"], record["passed"])
        while (pair := (label, len(kept))) in self._waiting:
            kept.append(self._distinct[label].add(*self._waiting.pop(pair)))
            self._enter(*pair, {**self._counts[pair], "kept": int(kept[-1].sum())})

    def _enter(self, label: int, index: int, counts: dict[str, int]) -> None:
        """Sets or replaces the counts of a pair."""
        self._sums[label].subtract(self._counts.get((label, index), {}))
        self._sums[label].update(counts)
        self._counts[label, index] = counts

    def next_block(self) -> tuple[int, int] | None:
        """Returns the class and index of the next block for this process, or None if no more are needed.

        A process that has walked its assigned blocks waits for the others; then the remaining blocks are assigned.

        Raises:
            CohortError: hardly any image passes the gate.
        """
        while not self._dealt:
            idist.barrier()
            self.refresh()
            idist.barrier()  # all processes must read the same files before any adds one
            due = list(itertools.islice(self.due(), DEALT * idist.get_world_size()))
            if not due:
                self._current = None
                return None
            self._dealt = due[idist.get_rank() :: idist.get_world_size()]
        self._current = self._dealt[0][0]
        return self._dealt.pop(0)

    def due(self) -> Iterator[tuple[int, int]]:
        """Yields class and index of the blocks that would be needed even if all their points passed.

        Raises:
            CohortError: hardly any image passes the gate, or there are no more pairs.
        """
        for label, quota in self.quotas.items():
            passed, known, block = 0, 0, 0
            while passed < quota:
                pairs = [(label, index) for index in self._indices(label, block)]
                if not pairs:
                    self._check_pairs(label, quota, known)
                    break
                if all(pair in self._counts for pair in pairs):
                    number = sum(self._counts[pair]["kept"] for pair in pairs)
                    known += number
                    passed += number
                else:
                    self._check_patience(label, quota, block, known)
                    passed += self.released * len(pairs)
                    yield label, block
                block += 1

    def takes(self, label: int, index: int) -> bool:
        """Returns whether a pair is one of those that there are, and no padding of the last block of its class."""
        return self.n_pairs is None or index < self.n_pairs[label]

    def add(self, label: int, index: int, record: dict[str, Tensor]) -> None:
        """Stores the outcome of a pair.

        Args:
            label: class of the pair.
            index: index of the pair within the class.
            record: ``image`` uint8 [N, H, W(, 3)], ``w`` and ``w_linear`` [N, w_dim], ``loss_history`` [steps], and the
                decisions, see `GateDecision`, bool [N].

        Raises:
            CohortError: the folder was removed in the meantime, or the outcome does not have this form.
        """
        if not self._claim.exists():
            raise CohortError(
                f"{self.folder} was removed while the pairs were walked. Leave it in its place, and run the same "
                f"command again: it starts anew."
            )
        problem = _misshapen(record, self.n_points)
        if problem is not None:
            raise CohortError(f"Pair {index} of class {label} cannot be kept: {problem}. The models may be damaged.")
        save_tensors(self._path(label, index), {**record, SEAL: self._seal(label, index, record)})
        self._note(label, index, record)

    def records(self, label: int) -> Iterator[dict[str, Tensor]]:
        """Yields the outcomes of all pairs in the blocks that supply the class's images, in the order of the pairs."""
        for index in self._taken(label):
            record, problem = self._read(label, index)
            if problem is not None:
                raise CohortError(
                    f"{self._path(label, index)} was changed while it was in use: {problem}. Run the same command "
                    f"again: it walks the pair anew."
                )
            yield record

    def images(self, label: int) -> Iterator[Tensor]:
        """Yields a class's images, uint8 [H, W] or [H, W, 3], as many as its quota, evenly from all paths."""
        kept = [self._kept[label][index] for index in self._taken(label)]
        shares = even_shares([int(mask.sum()) for mask in kept], self.quotas[label])
        for record, mask, wanted in zip(self.records(label), kept, shares, strict=True):
            yield from record["image"][mask][spread_places(int(mask.sum()), wanted)]

    def counts(self, label: int) -> dict[str, int]:
        """Returns sums over the inner points of the class's pairs: the gate's decisions, and ``near_duplicates``."""
        taken = [self._counts[label, index] for index in self._taken(label)]
        sums = {key: sum(counts[key] for counts in taken) for key in ("judged", *VERDICT)}
        return {**sums, "near_duplicates": sums["passed"] - sum(counts["kept"] for counts in taken)}

    def done(self) -> tuple[int, int]:
        """Returns the images that have passed so far, at most the quota of each class, and the images wanted."""
        wanted = sum(self.quotas.values())
        return wanted - sum(self.missing(label) for label in self.quotas), wanted

    def expected(self) -> float:
        """Returns the expected number of images that the current block will add to `done`."""
        if self._current is None:
            return 0.0
        judged, kept = (sum(sums[key] for sums in self._sums.values()) for key in ("judged", "kept"))
        share = kept / judged if judged else 1.0
        return max(0.0, min(share * self.block_size * self.released, self.missing(self._current)))

    def missing(self, label: int) -> int:
        """Returns the number of images of a class that have yet to pass."""
        return max(0, self.quotas[label] - self._sums[label]["kept"])

    def _check_patience(self, label: int, quota: int, block: int, passed: int) -> None:
        judged, through = self._sums[label]["judged"], self._sums[label]["passed"]
        needed = -(-quota // (self.released * self.block_size))
        if block >= PATIENCE * needed and passed < LEAST_SHARE * judged:
            raise CohortError(
                f"After {block * self.block_size} paths only {passed} of {quota} images of class {self._names[label]} "
                f"can be released: of {judged} points {through} passed the gate, and {through - passed} of these are "
                "near-duplicates of others. The generator shows patients or the wrong class too often, or has too "
                "little variety: train longer or ask for fewer images."
            )

    def _check_pairs(self, label: int, quota: int, passed: int) -> None:
        """Raises an error once all pairs of a class are walked and do not suffice; until then, some are due."""
        pairs, through = self._sums[label]["judged"] // self.released, self._sums[label]["passed"]
        if pairs >= (self.n_pairs or {}).get(label, 0):
            raise CohortError(
                f"All {pairs} paths between the centroids of {self._names[label]} are walked, and {passed} of {quota} "
                f"images can be released: {through} points passed the gate, and {through - passed} of these are near-"
                f"duplicates of others. Ask for at most --n_images {passed * len(self.quotas)}, divided evenly among "
                f"the classes, for more points (--n_points), or for more centroids (a smaller --k)."
            )

    def _taken(self, label: int) -> Iterator[int]:
        """Yields the indices of the pairs that supply the class's images: whole blocks, until the quota is met."""
        passed, block = 0, 0
        while passed < self.quotas[label]:
            for index in self._indices(label, block):
                yield index
                passed += self._counts[label, index]["kept"]
            block += 1

    def _indices(self, label: int, block: int) -> Sequence[int]:
        indices = range(block * self.block_size, (block + 1) * self.block_size)
        return indices if self.n_pairs is None else indices[: max(0, self.n_pairs[label] - indices.start)]

    def _path(self, label: int, index: int) -> Path:
        return self.folder / f"pair_{label}_{index:06d}.pt"

    def _read(self, label: int, index: int) -> tuple[dict[str, Tensor], str | None]:
        """Returns the stored outcome of a pair and None, or an empty dictionary and the problem with its file."""
        path = self._path(label, index)
        if not os.path.lexists(path):
            return {}, "it is gone"
        if not stat.S_ISREG(path.lstat().st_mode):
            return {}, "it is no regular file"
        try:
            with open(path, "rb") as stream:
                record = torch.load(stream, map_location="cpu", weights_only=True)
        except (OSError, MemoryError):
            raise  # does not mean that the file is damaged
        except Exception:  # torch.load raises many types on damaged files
            return {}, "it is damaged"
        if not isinstance(record, dict) or not all(isinstance(value, Tensor) for value in record.values()):
            return {}, "it is no file of tensors"
        seal = record.pop(SEAL, None)
        problem = _misshapen(record, self.n_points)
        if problem is None and (seal is None or not torch.equal(seal, self._seal(label, index, record))):
            problem = "it is of another run or another pair, or was changed"
        return ({}, problem) if problem else (record, None)

    def _seal(self, label: int, index: int, record: dict[str, Tensor]) -> Tensor:
        """Returns the SHA-256 over the run's settings, the pair's label and index, and its outcome, uint8 [32]."""
        content = {
            name: [str(value.dtype), list(value.shape), hashlib.sha256(_bytes(value)).hexdigest()]
            for name, value in record.items()
        }
        digest = content_digest([self._settings_sha256, label, index, content], 64)
        return torch.frombuffer(bytearray.fromhex(digest), dtype=torch.uint8)


def differing_keys(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Returns the names of settings that differ between those read from JSON and those of this process."""
    plain = json.loads(json.dumps(wanted))
    return sorted(str(key) for key in {*found, *plain} if found.get(key) != plain.get(key))


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().numpy().tobytes()


def _misshapen(record: dict[str, Any], n_points: int) -> str | None:
    """Returns the problem with the form of a pair's outcome (see `WalkLedger.add`), or None."""
    missing = {"image", "features", *VERDICT} - record.keys()
    if missing:
        return f"it lacks {', '.join(sorted(missing))}"
    image = record["image"]
    if image.dtype != torch.uint8 or image.ndim not in (3, 4) or (image.ndim == 4 and image.shape[3] != 3):
        return f"its images are {image.dtype} {list(image.shape)}"
    if len(image) != n_points:
        return f"it has {len(image)} images for {n_points} points"
    for name in VERDICT:
        if record[name].dtype != torch.bool or record[name].shape != (n_points,):
            return f"its {name} is {record[name].dtype} {list(record[name].shape)}"
    for name in ("features", "w", "w_linear"):
        value = record.get(name)
        if value is not None and (not value.is_floating_point() or value.ndim != 2 or len(value) != n_points):
            return f"its {name} is {value.dtype} {list(value.shape)}"
        if value is not None and not bool(value.isfinite().all()):
            return f"its {name} holds values that are no numbers"
    return None


def _counted(record: dict[str, Tensor]) -> dict[str, int]:
    """Returns the sums of the gate's decisions on the inner points of a pair, since its ends are never released.

    Until it is known how many are ``kept``, these are all that passed.
    """
    sums = {key: int(record[key][1:-1].sum()) for key in VERDICT}
    return {"judged": len(record["passed"]) - 2, **sums, "kept": sums["passed"]}
