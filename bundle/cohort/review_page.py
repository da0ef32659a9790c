# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The page on which people review a cohort: one HTML file with all images, for any browser and without a network.

It lies beside the cohort and not in it. What leaves is data alone; a later version of the page, which is a program,
changes no cohort's bits; and the copies of the images in it are no further files that an audit would have to judge.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from markupsafe import Markup

from bundle.cohort.contents import cohort_folder
from bundle.cohort.ledger import CohortError
from bundle.cohort.writer import images_sha256, read_labels, verify_cohort
from bundle.markup import csv_text, file_size, printable, write_html

__all__ = ["PAGE", "REASONS", "REVIEW_COLUMNS", "has_page", "review_page", "write_page"]

#: Name of the page, in the folder that holds the cohort's.
PAGE = "review.html"
#: Columns of review.csv. The first three say what was reviewed, as labels.csv and the manifest name it.
REVIEW_COLUMNS = ["image", "sha256", "label_name", "decision", "reason", "comment", "reviewer"]
#: Reasons to reject an image, with the words that the page shows.
REASONS = {
    "unrealistic": "looks unlike a real image",
    "label": "shows another class than its label",
    "artefact": "has a technical fault",
    "identifiable": "may show or name a real person",
    "other": "other (say it in the comment)",
}

CURE = "Only a cohort as it was generated or received can be reviewed."
# Where a page names its cohort, within its first bytes.
_MARK = '<meta name="plan-review" content="'
_HEAD = 1000


def review_page(cohort_dir: str | os.PathLike[str], page: str | os.PathLike[str] | None = None) -> None:
    """Verifies a cohort and writes its page; where it is and how large it is are printed.

    Args:
        cohort_dir: folder of the cohort.
        page: file to write; None for `PAGE` beside the cohort.

    Raises:
        CohortError: the folder is not as its manifest says; or the file would lie in it, or is none of its pages.
        OSError: the file cannot be written.
    """
    folder = cohort_folder(cohort_dir)
    manifest = verify_cohort(folder, CURE)
    target = (folder.parent / PAGE if page is None else Path(page)).resolve()
    if target.is_relative_to(folder):
        raise CohortError(f"{target} would be a file in the cohort, which its manifest does not know. Name another.")
    if os.path.lexists(target) and not has_page(manifest, target):
        raise CohortError(
            f"{target} is there already, and is no page of this cohort. Name another file, as in --page reviews/a.html."
        )
    write_page(folder, manifest, target)
    print(
        f"Open {printable(str(target))} in a browser ({file_size(target.stat().st_size)}), review every image, "
        f"and save review.csv there."
    )


def has_page(manifest: dict[str, Any], page: Path) -> bool:
    """Returns whether a file is the page of a cohort.

    Args:
        manifest: manifest of the cohort.
        page: path of the file.
    """
    if not page.is_file():
        return False
    with open(page, "rb") as stream:
        head = stream.read(_HEAD).decode(errors="replace")
    return f'{_MARK}{images_sha256(manifest)}"' in head


def write_page(folder: Path, manifest: dict[str, Any], page: Path) -> None:
    """Writes the page of a verified cohort.

    Args:
        folder: folder of the cohort.
        manifest: its manifest.
        page: file to write or to replace.

    Raises:
        CohortError: an image was changed since the cohort was verified.
        OSError: a file cannot be read or written.
    """
    files = manifest["files"]
    images = [
        {"image": name, "sha256": files[name], "label_name": label_name} for name, _, label_name in read_labels(folder)
    ]
    _render(page, images, images_sha256(manifest), str(manifest.get("modality", "")), _pictures(folder, images))


def _pictures(folder: Path, images: list[dict[str, str]]) -> Iterator[str]:
    for image in images:
        content = (folder / image["image"]).read_bytes()
        if hashlib.sha256(content).hexdigest() != image["sha256"]:
            raise CohortError(f"{folder / image['image']} was changed while it was read. Run the same command again.")
        yield base64.b64encode(content).decode()


def _render(page: Path, images: list[dict[str, str]], sha256: str, modality: str, pictures: Iterator[str]) -> None:
    """Fills in the template. The policy in its head lets a browser run and load nothing but what is written here."""
    own = Path(__file__).parent
    style, script = ((own / name).read_text(encoding="utf-8") for name in ("review.css", "review.js"))
    content = {
        "images_sha256": sha256,
        "columns": REVIEW_COLUMNS,
        "reasons": list(REASONS.items()),
        # The cells by which review.csv names an image, as `csv_text` writes them.
        "images": [{**image, "cells": csv_text([list(image.values())]).removesuffix("\n")} for image in images],
    }
    write_html(
        page,
        own / "review.html.j2",
        cohort=content,
        modality=modality,
        pictures=pictures,
        style=Markup(style),
        script=Markup(script),
        style_hash=_policy_hash(style),
        script_hash=_policy_hash(script),
    )


def _policy_hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
