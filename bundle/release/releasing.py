# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The command ``release``: writes the archive that leaves of a cohort that passed its audit and was reviewed."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bundle.auditing.clearance import passed_audit
from bundle.auditing.tables import audit_summary
from bundle.cohort.contents import cohort_folder
from bundle.cohort.formats import chosen_formats, formats_of
from bundle.cohort.ledger import CohortError
from bundle.cohort.review_page import PAGE, REASONS, has_page
from bundle.cohort.writer import ADDING, RELEASES, image_names, images_sha256, read_labels, verify_cohort
from bundle.files import sha256_file
from bundle.lock import folder_lock
from bundle.markup import file_size, printable
from bundle.release.datasheet import release_datasheet
from bundle.release.package import CURE, Package
from bundle.release.review import Review, ReviewError, read_review

__all__ = ["ARCHIVE", "release"]

#: Name of the archive.
ARCHIVE = "release.zip"
Rows = Sequence[tuple[str, int, str]]


def release(
    cohort_dir: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    review: str | os.PathLike[str] | None = None,
    audit_dir: str | os.PathLike[str] | None = None,
    unreviewed: bool = False,
    formats: Any = None,
) -> None:
    """Writes the images of a cohort that its review did not reject into an archive; the outcome is printed.

    In the archive is a cohort: images, labels, contact sheet, datasheet and manifest. Its PNG files have the bytes that
    they have in the whole cohort, and are numbered anew. Equal cohorts, reviews and audits give equal bits.

    Args:
        cohort_dir: folder of the cohort, as its manifest says.
        output_dir: folder that receives `ARCHIVE`.
        review: file with the decisions about all images, see docs/release.md.
        audit_dir: see `bundle.auditing.clearance.passed_audit`.
        unreviewed: whether to release images about which there is no decision.
        formats: file formats, see `bundle.cohort.formats.chosen_formats`; None for those of the cohort.

    Raises:
        CohortError: the folder is not as its manifest says or has not passed an audit, no image is left, or another
            release lies in ``output_dir``.
        ReviewError: the review is none of this cohort, or lacks decisions.
        DataError: the review is no CSV.
        InUseError: another run writes to ``output_dir``.
        OSError: a file cannot be read or written, for example because the disk is full.
    """
    folder, target = cohort_folder(cohort_dir), Path(output_dir).resolve() / ARCHIVE
    if target.is_relative_to(folder):
        raise CohortError(f"{printable(str(target))} would be a file in the cohort. Name another output_dir.")
    manifest = verify_cohort(folder, CURE)
    audit = passed_audit(folder, manifest, audit_dir)
    print(f"Passed its audit: {printable(str(audit))}")
    results, summary = _summary(audit)
    rows = read_labels(folder)
    decisions = Review() if review is None else read_review(review, folder, manifest)
    if not unreviewed:
        _refuse_undecided(review, decisions.undecided([name for name, *_ in rows]), folder, manifest)
    kept = [row for row in rows if row[0] not in decisions.rejected]
    if not kept:
        raise CohortError("The review rejects every image, so there is nothing to release.")
    entry = _entry(manifest, rows, decisions)
    entry["audit"] = {
        "audit_id": results["audit_id"],
        "title": results["verdict"]["title"],
        "images": results["cohort"]["images"],
        "results_sha256": sha256_file(audit / "results.json"),
    }
    datasheet = release_datasheet(entry, summary, (folder / "datasheet.md").read_text(encoding="utf-8"))
    chosen = formats_of(manifest["files"]) if formats is None else chosen_formats(formats)
    package = Package(folder, manifest, frozenset(row[0] for row in kept), _manifest(manifest, entry, kept), datasheet)
    target.parent.mkdir(parents=True, exist_ok=True)
    with folder_lock(target.parent):
        is_new = package.write(target, chosen)
    _report(entry, target, is_new)


def _summary(audit: Path) -> tuple[dict[str, Any], str]:
    """Returns the results of an audit and their summary."""
    try:
        results: dict[str, Any] = json.loads((audit / "results.json").read_text(encoding="utf-8"))
        _ = results["audit_id"], int(results["cohort"]["images"])
        return results, audit_summary(results)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CohortError(
            f"{printable(str(audit))} holds results of an audit of another version, which a datasheet cannot repeat. "
            "Run the audit again."
        ) from error


def _refuse_undecided(review: Any, undecided: Sequence[str], folder: Path, manifest: dict[str, Any]) -> None:
    if not undecided:
        return
    page, images = folder.parent / PAGE, len(image_names(manifest["files"]))
    how = f"Open {page}" if has_page(manifest, page) else "Write its page (run review_page of configs/release.json)"
    cure = f"{how}, review every image, and name what it saves: --review review.csv. Without: --unreviewed True"
    if review is None:
        raise ReviewError(f"{printable(str(folder))} was not reviewed. {printable(cure)}")
    raise ReviewError(
        f"{printable(str(review))} has no decision about {len(undecided)} of {images} images, such as "
        f"{printable(undecided[0])}. {printable(cure)}"
    )


def _entry(manifest: dict[str, Any], rows: Rows, review: Review) -> dict[str, Any]:
    """Returns the entry of the manifest that describes the review."""
    classes: dict[str, dict[str, int]] = {}
    for name, _, label_name in rows:
        counts = classes.setdefault(label_name, {"accepted": 0, "rejected": 0, "not_reviewed": 0})
        is_rejected, is_accepted = name in review.rejected, name in review.accepted
        counts["rejected" if is_rejected else "accepted" if is_accepted else "not_reviewed"] += 1
    reasons = Counter(review.rejected.values())
    return {
        "images": len(rows),
        "left_out": len(review.rejected),
        "images_sha256": images_sha256(manifest),
        "review": {
            "classes": classes,
            "reasons": {reason: reasons[reason] for reason in REASONS if reason in reasons},
            "reviewers": review.reviewers,
        },
    }


def _manifest(manifest: dict[str, Any], entry: dict[str, Any], kept: Rows) -> dict[str, Any]:
    released = {key: value for key, value in manifest.items() if key != ADDING}
    released[RELEASES] = [*manifest.get(RELEASES, []), entry]
    if "gate" in manifest:
        counts = Counter(label_name for *_, label_name in kept)
        released["gate"] = {name: {**other, "images": counts[name]} for name, other in manifest["gate"].items()}
    return released


def _report(entry: dict[str, Any], target: Path, is_new: bool) -> None:
    review, images = entry["review"], entry["images"]
    unreviewed = sum(counts["not_reviewed"] for counts in review["classes"].values())
    reasons = ", ".join(f"{reason} {number}" for reason, number in review["reasons"].items())
    rejected = f", {entry['left_out']} rejected ({reasons})" if reasons else ""
    here = images - entry["left_out"]
    print(f"{here} of {images} images: {here - unreviewed} accepted{rejected}, {unreviewed} not reviewed.")
    if named := review["reasons"].get("identifiable"):
        print(
            f"{named} of the rejected images might show or name a real person. The others come from the same "
            "generator: find out why before you hand anything over."
        )
    print(
        f"The release{'' if is_new else ', which was there already'}: {printable(str(target))} "
        f"({file_size(target.stat().st_size)}), SHA-256 {sha256_file(target)}"
    )
