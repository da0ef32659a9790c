# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Several releases audited as one, since whoever collects them has all their images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bundle.auditing.images import Cohort, open_cohort
from bundle.data import DataError, DatasetDir, Modality

__all__ = ["joined", "open_cohorts"]

# Entries of the manifests that must be equal in all releases of one audit, and what a difference means.
COMMON = {
    "split_sha256": "were made by networks that were trained with different splits of the data",
    "preprocessing": "were preprocessed in different ways",
}


def open_cohorts(
    cohort_dir: DatasetDir,
    dataset_dir: DatasetDir,
    modality: Modality,
    layout: str | Mapping[str, Any] = "auto",
) -> Cohort:
    """Reads every image of one folder, or of several releases that are audited as one cohort.

    Args:
        cohort_dir: folder of synthetic images, or a list of them.
        dataset_dir: see `bundle.auditing.images.open_cohort`.
        modality: see `bundle.auditing.images.open_cohort`.
        layout: see `bundle.auditing.images.open_cohort`.

    Raises:
        DataError: see `bundle.auditing.images.open_cohort`; or releases are given twice or do not belong together.
    """
    folders = [cohort_dir] if isinstance(cohort_dir, str | os.PathLike) else list(cohort_dir)
    places = [Path(folder).expanduser().resolve() for folder in folders]
    for number, place in enumerate(places):
        if any(other == place or other in place.parents for other in places[:number] + places[number + 1 :]):
            raise DataError(f"cohort_dir names {place} twice, or a folder in it as well. Name each release once.")
    cohorts = [open_cohort(folder, dataset_dir, modality, layout) for folder in folders]
    return cohorts[0] if len(cohorts) == 1 else joined(cohorts)


def joined(cohorts: Sequence[Cohort]) -> Cohort:
    """Joins releases into one cohort, in which the number of the release, from 1, precedes the names of its files.

    The manifest of the result has the entries that all manifests share.

    Args:
        cohorts: two or more cohorts.

    Raises:
        DataError: the manifests name different splits or preprocessings.
    """
    for key, difference in COMMON.items():
        if len({cohort.manifest[key] for cohort in cohorts if key in cohort.manifest}) > 1:
            raise DataError(f"The releases in cohort_dir {difference}, say their manifests. Audit them separately.")
    same_side = len({cohort.side for cohort in cohorts}) == 1
    first, states = cohorts[0].manifest, {cohort.holds for cohort in cohorts}
    return Cohort(
        Path(os.path.commonpath([cohort.folder for cohort in cohorts])),
        tuple(
            replace(record, name=f"{number}/{record.name}")
            for number, cohort in enumerate(cohorts, start=1)
            for record in cohort.records
        ),
        int(np.median(np.repeat([cohort.side for cohort in cohorts], [len(cohort.records) for cohort in cohorts]))),
        max(cohort.sides for cohort in cohorts) if same_side else sum(cohort.sides for cohort in cohorts),
        tuple(digest for cohort in cohorts for digest in cohort.digests),
        {key: value for key, value in first.items() if all(cohort.manifest.get(key) == value for cohort in cohorts)},
        False if False in states else True if states == {True} else None,
        tuple(f"{number}/{name}" for number, cohort in enumerate(cohorts, start=1) for name in cohort.not_judged),
        tuple(entry for cohort in cohorts for entry in cohort.filtered),
    )
