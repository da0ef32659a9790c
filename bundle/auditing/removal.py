# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Removes copies that an audit found from a cohort, and has the rest audited by networks that did not choose it.

An audit whose findings are removed has become a filter: what is left passes its networks by construction. Only networks
of another training can then say anything about the new cohort.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from bundle.auditing.engine import AuditEngine
from bundle.auditing.images import Cohort, open_cohort
from bundle.auditing.verdict import COPIES
from bundle.cohort.formats import formats_of
from bundle.cohort.review_page import PAGE, write_page
from bundle.cohort.writer import ADDING, COLUMNS, FILTERED, FILTERED_FILE, read_labels, verify_cohort, write_cohort
from bundle.data import DataError, DatasetDir
from bundle.files import atomic_folder, write_json
from bundle.markup import csv_text

__all__ = ["AUDIT_DIR", "COHORT_DIR", "LARGEST_SHARE", "audit_without_flagged", "write_without"]

#: Largest share of a cohort that is removed; beyond it, the generator copies, and its other images are suspect as well.
LARGEST_SHARE = 0.1
#: Folders in the output folder of the first audit: the new cohort, and its audit.
COHORT_DIR, AUDIT_DIR = "cohort_without_flagged", "audit_without_flagged"

# Number of seeds that the networks' training takes.
SEEDS = 2**32

#: Returns networks and the content of their JSON files, by name, given the seed of their training.
NetworkMaker = Callable[[int], tuple[dict[str, nn.Module], dict[str, dict[str, Any]]]]


def audit_without_flagged(
    first: AuditEngine,
    train_networks: NetworkMaker,
    dataset_dir: DatasetDir,
    layout: str | Mapping[str, Any] = "auto",
    handlers: Sequence[Any] | None = None,
) -> AuditEngine | None:
    """Writes the cohort without the images that an audit found to be copies, and audits it with other networks.

    Args:
        first: audit that has been run.
        train_networks: trains or loads audit networks for the same images, given a seed.
        dataset_dir: folder or folders of the real images.
        layout: layout of dataset_dir.
        handlers: further Ignite handlers of the second audit.

    Returns:
        The second audit, which has been run; None if nothing was removed: nothing was found, the first audit's figures
        cannot be used, or more than `LARGEST_SHARE` of the images would have to go.

    Raises:
        DataError: the folder of the new cohort exists and holds another one.
    """
    if reason := _reason_to_keep(first):
        print(f"No image is removed: {reason}")
        return None
    removed, total = int(first.copies.sum()), len(first.copies)
    # The seed of another training than the one that produced the networks which chose the images.
    seed = (1 + max(first.seed, *(int(info.get("seed", 0)) for info in first.infos.values()))) % SEEDS
    folder = first.output_dir / COHORT_DIR
    filtered = {
        "removed": removed,
        "images": total,
        "cohort_sha256": first.cohort.sha256,
        "networks": {name: info["sha256"] for name, info in first.infos.items()},
    }
    kept = (~first.copies).nonzero()[:, 0].tolist()
    names = first.data.class_names
    expected = replace(
        first.cohort,
        records=tuple(first.cohort.records[number] for number in kept),
        digests=tuple(first.cohort.digests[number] for number in kept),
        filtered=(*first.cohort.filtered, filtered),
    )
    if not folder.exists():
        write_without(expected, folder, names)
    cohort = open_cohort(folder, dataset_dir, first.data.modality, layout)
    if cohort.sha256 != expected.sha256:
        raise DataError(f"{folder} holds another cohort than this audit leaves. Remove it, or name another output_dir.")
    print(
        f"\n{removed} of {total} images were removed. The new cohort: {folder}\nThe audit has thereby become a filter: "
        "what is left passes its networks by construction. Networks of another training audit it now."
    )
    cohort = replace(cohort, filtered=expected.filtered)
    second = first.again(cohort, *train_networks(seed), first.output_dir / AUDIT_DIR, handlers)
    second.run()
    return second


def _reason_to_keep(first: AuditEngine) -> str:
    """Returns why no image is removed from an audited cohort; empty if some are to be removed."""
    assert first.verdict is not None
    removed, total = int(first.copies.sum()), len(first.copies)
    if not removed:
        return "none was found to be a copy."
    if first.verdict.code != COPIES:
        return "the figures of this audit cannot be used."
    if removed > LARGEST_SHARE * total:
        return (
            f"{removed} of {total} images are copies, more than {LARGEST_SHARE:.0%}. The generator is at fault, and "
            "its other images are suspect as well: train it anew with more images or fewer steps."
        )
    return ""


def write_without(kept: Cohort, target: Path, class_names: Sequence[str]) -> None:
    """Writes a cohort that lacks some images of another one, under a temporary name that is renamed at the end.

    Of a cohort with a valid manifest, all its parts are written anew, with consecutive file names. Of any other folder,
    images keep their files and names, labels.csv lists those that are left, and a datasheet is added; other texts are
    left out, since they may be about the removed images.

    Args:
        kept: the images that are left, with the folder and the manifest of the whole cohort; the last entry of
            ``filtered`` describes the removal.
        target: path of the new folder; it must not exist.
        class_names: names of the classes, for labels.csv.

    Raises:
        CohortError: see `bundle.cohort.writer.write_cohort`.
        OSError: a file cannot be read or written.
    """
    sheet = kept.folder / "datasheet.md"
    datasheet = _datasheet(kept.filtered[-1], sheet.read_text(encoding="utf-8") if sheet.is_file() else "")
    if kept.holds:
        _write_sealed(kept, target, datasheet)
        return
    with atomic_folder(target) as folder:
        for record in kept.records:
            path = folder / record.name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(record.image, path)
        write_json(folder / FILTERED_FILE, list(kept.filtered))
        if kept.labels is not None:  # folders of classes may have lost a class
            rows = [(record.name, record.label, class_names[record.label or 0]) for record in kept.records]
            (folder / "labels.csv").write_text(csv_text([COLUMNS, *rows]), encoding="utf-8")
        (folder / sheet.name).write_text(datasheet, encoding="utf-8")


def _write_sealed(kept: Cohort, target: Path, datasheet: str) -> None:
    names = {record.name for record in kept.records}
    rows = [(name, label, label_name) for name, label, label_name in read_labels(kept.folder) if name in names]
    manifest = {key: value for key, value in kept.manifest.items() if key != ADDING}
    manifest[FILTERED] = list(kept.filtered)
    counts = Counter(label_name for *_, label_name in rows)
    if "gate" in manifest:
        manifest["gate"] = {name: {**entry, "images": counts[name]} for name, entry in manifest["gate"].items()}
    images = ((label, _pixels(kept.folder / name)) for name, label, _ in rows)
    write_cohort(target, images, tuple(manifest["class_names"]), manifest, datasheet, formats_of(manifest["files"]))
    if not (page := target.parent / PAGE).exists():  # that of the whole cohort may lie there
        write_page(target, verify_cohort(target), page)


def _pixels(path: Path) -> Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image))


def _datasheet(filtered: dict[str, Any], before: str) -> str:
    left = filtered["images"] - filtered["removed"]
    text = f"""# {left} images that are left of a synthetic cohort

An audit removed {filtered["removed"]} of {filtered["images"]} images, because it found them to be copies of real \
images, as a whole or in part. It has thereby become a filter: the {left} images that are left pass its tests by \
construction, so its verdict says nothing about them. They must be judged by an audit with networks of another training.

The whole cohort had the content SHA-256 `{filtered["cohort_sha256"]}`.
"""
    if not before:
        return text
    return (
        f"{text}\nWhat follows is the datasheet of the whole cohort, with its numbers before the removal.\n\n{before}"
    )
