# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The datasheet of a release: what a review left of a cohort, and what the cohort's audit says of that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bundle.cohort.review_page import REASONS
from bundle.markup import markdown_table, markdown_text

__all__ = ["release_datasheet"]

DECISIONS = ("accepted", "rejected", "not_reviewed")


def release_datasheet(entry: Mapping[str, Any], audit: str, before: str) -> str:
    """Writes what a partner must know about a release.

    Args:
        entry: entry of the manifest that describes the release, see `bundle.cohort.writer.RELEASES`.
        audit: summary of the audit, from `bundle.auditing.tables.audit_summary`.
        before: datasheet of the whole cohort.

    Returns:
        Markdown text.
    """
    here = entry["images"] - entry["left_out"]
    return f"""# Datasheet of a release: {here} images of a synthetic cohort

Here are {here} of the {entry["images"]} images of a synthetic cohort. First stands what was reviewed and audited, \
then the datasheet of the whole cohort, with its numbers before the review.

## Review

{_review(entry["review"], entry["images"])}

## Audit of the whole cohort

{audit}

## What the audit says of the images here

{_reach(entry["audit"]["images"], entry["images"], here)}

{before}"""


def _review(review: Mapping[str, Any], images: int) -> str:
    totals = {key: sum(counts[key] for counts in review["classes"].values()) for key in DECISIONS}
    done = images - totals["not_reviewed"]
    people = {0: "", 1: " by one person"}.get(review["reviewers"], f" by {review['reviewers']} people")
    if not done:
        parts = ["**Nobody reviewed the images before they were released.**"]
    elif done < images:
        parts = [f"**Only {done} of {images} images were reviewed{people}.** The others are here without a review."]
    else:
        parts = [f"Each of the {images} images was looked at{people}."]
    if totals["rejected"]:
        reasons = "; ".join(f"{REASONS[reason]}: {number}" for reason, number in review["reasons"].items())
        parts[0] += f" Those that were rejected are not here. Why: {reasons}."
    parts.append(
        markdown_table(
            [
                ["class", "in the cohort", "accepted", "rejected", "not reviewed", "here"],
                *(
                    [
                        markdown_text(name),
                        *map(str, [sum(counts.values()), *(counts[key] for key in DECISIONS)]),
                        str(counts["accepted"] + counts["not_reviewed"]),
                    ]
                    for name, counts in [*review["classes"].items(), ("all", totals)]
                ),
            ]
        )
    )
    if named := review["reasons"].get("identifiable", 0):
        parts.append(
            f"**{named} of the rejected images might show or name a real person, in the eyes of a reviewer.** The "
            "images here come from the same generator."
        )
    parts.append(
        "A review finds what looks wrong. Reviewers cannot see whether an image resembles a training patient: that is "
        "what the audit asks."
    )
    return "\n\n".join(parts)


def _reach(judged: int, images: int, here: int) -> str:
    """Returns what follows from an audit of the whole for a part of it."""
    together = f" together with other releases, {judged} images in all" if judged != images else ""
    if here == images == judged:
        return "The audit judged exactly these images, and all of it holds for them."
    if here == images:
        return f"The audit judged these images{together}. Its shares and distances are those of all of them."
    return f"""The audit judged the {images} images of the whole cohort{together}, and was not repeated for the {here} \
that are here:

- **What it says of each single image holds for each image here**, at the bars that it set for {judged} images. For \
fewer images, these would be somewhat lower.
- **Its shares, distances and differences are those of the whole.** They were not measured for the images here. What \
follows is that a share of images is at most {judged / here:.3g} times as high here, as if every image counted in it \
had been kept.
- **A review is a selection.** Whoever leaves out what looks unreal keeps what is more like real images, and such \
images can be nearer to patients, too. On average, the images here may resemble patients more than the whole does.

An audit of the unpacked folder would judge exactly the images here."""
