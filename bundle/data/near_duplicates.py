# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Finds images of different patients that show nearly the same picture: saved anew, resized, cropped or mirrored.

Nearly all crops of up to 10 % at each side and rotations of up to 5 degrees are found. Such a pair is one patient under
two names, as a rule. If one image is in train or extra and the other in val or test, a held-out image was trained on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from bundle.alignment import SIDE, Views, aligned_correlation
from bundle.data.dataset import IDENTITY_SPLITS
from bundle.data.errors import Problem
from bundle.data.modality import Modality
from bundle.data.readers import decode
from bundle.data.records import Record
from bundle.files import content_digest, write_json

__all__ = ["ACROSS_SPLITS", "LEAST_CORRELATION", "Pair", "near_duplicates", "summary", "thumbnail", "warnings_of"]

#: The serious kind of warning, and the other.
ACROSS_SPLITS, WITHIN_SPLIT = "near-duplicate across splits", "near-duplicate"
# Format of the file with the results; to be increased whenever the search changes.
FORMAT = 2
# Threads that decode images; each holds one at full size.
THREADS = 8
# Pairs that a summary names.
EXAMPLES = 3

#: Correlation of aligned detail (`bundle.alignment`) from which two images count as nearly the same picture.
LEAST_CORRELATION = 0.92
# Correlation of coarse images, after small transforms and mirroring, from which a pair is aligned.
LEAST_COARSE = 0.7
# Images of other patients with which each image is aligned.
CANDIDATES = 2
# Scales and angles in degrees of coarse images, and shifts along each side, in their pixels.
TRANSFORMS = ((1.0, 0.0), (0.85, 0.0), (0.92, 0.0), (1.09, 0.0), (1.18, 0.0), (1.0, -5.0), (1.0, 5.0))
SHIFTS = (-2, 0, 2)
# Images whose correlation with all others is computed at once; bounds the memory.
BLOCK = 500


@dataclass(frozen=True)
class Pair:
    """Two images that show nearly the same picture.

    Attributes:
        first: index of one image.
        second: index of the other, larger.
        correlation: of their aligned detail.
    """

    first: int
    second: int
    correlation: float


def thumbnail(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Reduces a decoded image [C, H, W] in [0, 1] to grey of 128 x 128 pixels, the rest of a square black."""
    grey = torch.from_numpy(image.mean(axis=0))
    longest = max(grey.shape)
    height, width = (max(1, round(side * SIDE / longest)) for side in grey.shape)
    small = F.interpolate(grey[None, None], (height, width), mode="bilinear", antialias=True)[0, 0]
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    square = F.pad(small, (left, SIDE - width - left, top, SIDE - height - top))
    return (255.0 * square.clamp(0.0, 1.0)).round().to(torch.uint8).numpy()


def near_duplicates(thumbnails: Sequence[NDArray[np.uint8]], patients: Sequence[str]) -> list[Pair]:
    """Finds pairs of images of different patients that are nearly the same picture.

    Coarse images of 32 pixels, also scaled, rotated, shifted and mirrored, are correlated with all others; the two most
    similar ones of other patients are aligned with each image, and the detail that is left must correlate at
    `LEAST_CORRELATION` in half of the cells.

    Args:
        thumbnails: results of `thumbnail` for N images.
        patients: the patient of each image.

    Returns:
        The pairs, in the order of the images.
    """
    if len(thumbnails) < 2:
        return []
    views = Views.of(torch.from_numpy(np.stack(thumbnails)))
    numbers = {name: number for number, name in enumerate(dict.fromkeys(patients))}
    owners = torch.tensor([numbers[name] for name in patients])
    pairs: dict[tuple[int, int], float] = {}
    for first, second in tqdm(_candidates(views.coarse, owners), "comparing similar images", unit="pair"):
        image, other = torch.tensor([first]), torch.tensor([second])
        (found,), _ = aligned_correlation(views[image], views[other], torch.zeros(1, 1, dtype=torch.int64))
        if found >= LEAST_CORRELATION:
            pairs[first, second] = float(found)
    return [Pair(*images, correlation) for images, correlation in sorted(pairs.items())]


def warnings_of(
    records: Sequence[Record],
    digests: Mapping[str, str],
    split_of: Mapping[str, str | None],
    thumbnails: Mapping[str, NDArray[np.uint8]],
    modality: Modality,
    listed: Path,
) -> list[Problem]:
    """Searches a data set for near-duplicates of different patients, once for the same images and patients.

    Args:
        records: images of the data set.
        digests: SHA-256 of each image's decoded pixels, by image name; others cannot be read and are skipped.
        split_of: split of each image, by image name.
        thumbnails: results of `thumbnail` by image name, for images that have just been decoded; others are read.
        modality: preset of the kind of image.
        listed: private file that will list the warnings; ``near_duplicates.json`` beside it keeps the result.

    Returns:
        One warning for each pair whose pixels differ: first those of a held-out image and one that is trained on, then
        others across splits.
    """
    known = [record for record in records if record.name in digests]
    key = content_digest([FORMAT, [[record.name, record.patient_id, digests[record.name]] for record in known]], 64)
    cache_file = listed.with_name("near_duplicates.json")
    pairs = _read(cache_file, key)
    if pairs is None:

        def read(record: Record) -> NDArray[np.uint8]:
            found = thumbnails.get(record.name)
            return thumbnail(decode(record.image, modality.channels)) if found is None else found

        with ThreadPoolExecutor(THREADS) as pool:
            images = list(pool.map(read, known))
        pairs = near_duplicates(images, [record.patient_id for record in known])
        write_json(cache_file, {"key": key, "pairs": [asdict(pair) for pair in pairs]})
    cure = (
        "Look at both. If they show one patient, give both the same patient_id (and split), or remove one, before "
        "anything is trained"
    )
    ranked = []
    for pair in pairs:
        one, other = known[pair.first].name, known[pair.second].name
        if digests[one] == digests[other]:
            continue  # reported as a duplicate
        splits = split_of[one], split_of[other]
        where = f"; they are in {splits[1]} and {splits[0]}" if splits[0] != splits[1] else ""
        is_trained_on = not (set(splits).isdisjoint(IDENTITY_SPLITS) or set(splits).isdisjoint(("val", "test")))
        where += ", so that a held-out image may have been trained on" if is_trained_on else ""
        message = f"shows nearly the same picture as {one}, which is another patient's{where}"
        warning = Problem(other, ACROSS_SPLITS if where else WITHIN_SPLIT, message, cure)
        ranked.append((not is_trained_on, not where, warning))
    return [warning for *_, warning in sorted(ranked)]


def summary(warnings: Sequence[Problem], listed: Path) -> list[str]:
    """Returns a note with the number of pairs and examples; none without warnings."""
    if not warnings:
        return []
    across = sum(warning.kind == ACROSS_SPLITS for warning in warnings)
    examples = "".join(f"\n  {warning.name} {warning.message}" for warning in warnings[:EXAMPLES])
    return [
        f"{len(warnings)} pairs of images of different patients show nearly the same picture, {across} of them across "
        f"splits:{examples}\nAll of them: {listed}. {warnings[0].cure}. "
        "Networks trained before do not fit the data afterwards."
    ]


def _read(cache_file: Path, key: str) -> list[Pair] | None:
    try:
        content = json.loads(cache_file.read_text(encoding="utf-8"))
        return [Pair(**pair) for pair in content["pairs"]] if content["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _candidates(coarse: Tensor, owners: Tensor) -> list[tuple[int, int]]:
    """Returns the pairs of indices, each ascending, that are similar enough to be aligned."""
    gallery = _unit(coarse)
    chosen = set()
    for start in tqdm(range(0, len(coarse), BLOCK), "seeking near-duplicates", unit="block"):
        rows = torch.arange(start, min(start + BLOCK, len(coarse)))
        best = torch.full((len(rows), len(coarse)), -1.0)
        for images in (coarse[rows], coarse[rows].flip(-1)):
            for scale, angle in TRANSFORMS:
                turned = _turned(images, scale, angle)
                for shift in product(SHIFTS, repeat=2):
                    best = torch.maximum(best, _unit(turned.roll(shift, (-2, -1))) @ gallery.T)
        best[owners[rows][:, None] == owners[None]] = -1.0
        values, indices = best.topk(min(CANDIDATES, len(coarse)), dim=1)
        for row, columns, found in zip(rows.tolist(), indices.tolist(), values.tolist(), strict=True):
            pairs = zip(columns, found, strict=True)
            chosen |= {(min(row, n), max(row, n)) for n, value in pairs if value >= LEAST_COARSE}
    return sorted(chosen)


def _turned(images: Tensor, scale: float, angle: float) -> Tensor:
    """Enlarges and rotates images [N, H, W] about their centre."""
    cos, sin = math.cos(math.radians(angle)) / scale, math.sin(math.radians(angle)) / scale
    matrix = torch.tensor([[[cos, -sin, 0.0], [sin, cos, 0.0]]])
    grid = F.affine_grid(matrix.expand(len(images), -1, -1), [len(images), 1, *images.shape[1:]], align_corners=False)
    return F.grid_sample(images[:, None], grid, align_corners=False)[:, 0]


def _unit(images: Tensor) -> Tensor:
    vectors = images.flatten(1)
    return F.normalize(vectors - vectors.mean(dim=1, keepdim=True), dim=1)
