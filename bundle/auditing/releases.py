# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Several releases audited as one, since whoever collects them has all their images."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bundle.auditing.images import Cohort, open_cohort
from bundle.data import DataError, DatasetDir, Modality
from bundle.data.records import Record

__all__ = ["joined", "open_cohorts"]

logger = logging.getLogger(__name__)


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
    if len(folders) == 1:
        return open_cohort(folders[0], dataset_dir, modality, layout)
    cohorts = []
    for number, folder in enumerate(folders, start=1):
        try:
            cohorts.append(open_cohort(folder, dataset_dir, modality, layout))
        except DataError as error:
            raise DataError(f"Release {number}, {folder}: {error}") from error
    return joined(cohorts)


def joined(cohorts: Sequence[Cohort]) -> Cohort:
    """Joins releases into one cohort, in which the number of the release, from 1, precedes the names of its files.

    An image that an earlier release holds as well, pixel for pixel, is judged once. The manifest of the result has the
    split of the releases and the entries that all manifests share; ``preprocessing`` is None if they differ in it.

    Args:
        cohorts: two or more cohorts.

    Raises:
        DataError: the manifests name different splits.
    """
    if len({cohort.manifest["split_sha256"] for cohort in cohorts if "split_sha256" in cohort.manifest}) > 1:
        raise DataError(
            "The releases in cohort_dir were made by networks that were trained with different splits of the data, say "
            "their manifests. Audit them separately."
        )
    first, states = cohorts[0].manifest, {cohort.holds for cohort in cohorts}
    shared = {key: value for key, value in first.items() if all(c.manifest.get(key) == value for c in cohorts)}
    manifest = {key: value for key, value in shared.items() if value is not None}
    manifest |= {key: c.manifest[key] for c in cohorts for key in ("split_sha256",) if key in c.manifest}
    if len({c.manifest.get("preprocessing") for c in cohorts}) > 1:
        manifest["preprocessing"] = None
    images: list[tuple[str, Record]] = []
    repeated = 0
    for number, cohort in enumerate(cohorts, start=1):
        known = {digest for digest, _ in images}
        new = [
            (digest, replace(record, name=f"{number}/{record.name}"))
            for digest, record in zip(cohort.digests, cohort.records, strict=True)
            if digest not in known
        ]
        repeated += len(cohort.records) - len(new)
        images += new
    if repeated:
        logger.warning("%d images are, pixel for pixel, in several releases; each is judged once.", repeated)
    sides = [cohort.side for cohort in cohorts]
    return Cohort(
        Path(os.path.commonpath([cohort.folder for cohort in cohorts])),
        tuple(record for _, record in images),
        int(np.median(np.repeat(sides, [len(cohort.records) for cohort in cohorts]))),
        (max if len(set(sides)) == 1 else sum)(cohort.sides for cohort in cohorts),
        tuple(digest for digest, _ in images),
        manifest,
        False if False in states else True if states == {True} else None,
        tuple(f"{number}/{name}" for number, cohort in enumerate(cohorts, start=1) for name in cohort.not_judged),
        tuple(entry for cohort in cohorts for entry in cohort.filtered),
        tuple((cohort.folder, len(cohort.records), cohort.sha256, cohort.images_sha256) for cohort in cohorts),
    )
