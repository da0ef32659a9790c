# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The datasheet that accompanies a cohort."""

from __future__ import annotations

from typing import Any

from bundle.markup import markdown_table, markdown_text

__all__ = ["datasheet"]


def datasheet(manifest: dict[str, Any], licence: str) -> str:
    """Writes what a partner must know about a cohort before using it.

    Args:
        manifest: manifest of the cohort, with ``configuration``, ``modality``, ``resolution``, ``class_names`` and
            ``gate`` (counts by class name), see `write_cohort`.
        licence: licence of the cohort, from the generator's JSON.

    Returns:
        Markdown text.
    """
    options, side = manifest["configuration"], manifest["resolution"]
    dropped = [f"dropped: {reason}" for reason in ("recognised", "other class", "unrealistic")]
    head = ["class", "images here", "judged by the gate", *dropped, "passed, but near-duplicates"]
    keys = ("images", "judged", "recognised", "mislabelled", "unrealistic", "near_duplicates")
    table = markdown_table(
        [
            head,
            *([markdown_text(name), *(str(counts[key]) for key in keys)] for name, counts in manifest["gate"].items()),
        ]
    )
    warning, bound, reach, limit = _changes(options.get("changed_configuration", {}))
    ends, k_same = _ends(options.get("ksame"))
    return f"""# Datasheet of a synthetic cohort

{options["n_images"]} synthetic {markdown_text(str(manifest["modality"]))} images of {side} x {side} pixels, \
8 bits, with a class label each. No image is a photograph of a patient.

## How it was made
A generative adversarial network was trained on real images. PLAN (Pennisi et al., MICCAI 2023, arXiv 2307.02984) \
walked between pairs of points of its latent space, {options["n_points"]} points on each path, away from places where \
a classifier of the training patients recognises one (objective `{options["objective"]}`, seed {options["seed"]}). \
{ends} \
A gate of three other networks, which the walk never saw, then dropped every image in which it recognised a training \
patient more surely than {bound} (a probability above \
{options["threshold"]:.4g}), whose class it saw otherwise than the label says, or which is farther from real images of \
its class than {reach} (a distance above {options["farthest"]:.4g}).
{warning}
{table}

An image can be dropped for several reasons. Of the images that passed, one was left out if it is nearer to another \
image here than 19 of 20 real images are to their nearest neighbour of the same class, in features of the network that \
judges realism. The rest were taken evenly from all paths, and those beyond the number asked for were left out.

## What it is for
Development, teaching and tests of software. It must not be used for diagnosis, and a model trained on it must be \
validated on real images before anyone relies on it.

## What it does not promise
- No differential privacy: the networks saw every training image, and no mathematical bound limits what an image \
gives away.
{k_same}- {limit}
- Labels are the classes that the images were generated for. They carry over whatever the training labels followed, \
the source of an image included.

## Files
`labels.csv` lists the images, `manifest.json` the configuration, the versions, the networks' hashes and the SHA-256 \
of every file, `contact_sheet.png` shows some of the images.

## Licence
{markdown_text(licence)}
"""


def _ends(ksame: dict[str, Any] | None) -> tuple[str, str]:
    """Returns what the ends of the paths are, and what k-same does not promise, as an item of a list."""
    if ksame is None:
        return "The two ends of a path are random samples that were not walked; they are not among the images.", ""
    k, numbers = ksame["k"], ", ".join(f"{markdown_text(name)} {n}" for name, n in ksame["centroids"].items())
    method = {
        "laca": "the mean of the latents (LACA, Pennisi et al., DeCaF 2022)",
        "ksalsa": "a latent moved from the mean of the latents, until its image has the content and the local style "
        "(k-SALSA, Jeon et al., ECCV 2022)",
    }[ksame["method"]]
    ends = (
        f"The two ends of a path are k-same centroids, k = {k}: each is {method} of the images of at least {k} "
        f"different patients of one class, and no patient stands behind two (number of centroids: {numbers}). They "
        f"were not walked and are not among the images. Behind the two ends of a path stand at least "
        f"{ksame['fewest_patients']} patients."
    )
    return ends, (
        f"- No k-anonymity of this cohort. k = {k} holds for the ends of the paths, and counts patients as the data "
        f"name them. The walk leaves the straight line between the ends, and generator, encoder and guides saw every "
        f"record, so that an image may show more of one patient than the ends of its path do; and patients who look "
        f"alike have a centroid that looks like each of them.\n"
    )


def _changes(changed: dict[str, Any]) -> tuple[str, str, str, str]:
    """Returns a warning about changes besides the options, the gate's two bounds, and the limit of the first."""
    warning = ""
    if changed:
        parts = ", ".join(f"{markdown_text(name)} = {markdown_text(str(value))}" for name, value in changed.items())
        warning = f"""
**The configuration was changed besides its options: {parts}.** What is said above of these parts may not hold.
"""
    if any(name.partition("#")[0] == "gate" for name in changed):
        bound = reach = "a threshold allows that was set by hand"
        limit = "The gate was changed by hand: the share of held-out images that it stops is not known."
    else:
        bound, reach = "it does in 95 % of held-out real images", "75 % of held-out real images are"
        limit = (
            "The gate's threshold counts 5 % of held-out images as recognised; an image below it is not proven to "
            "resemble no patient."
        )
    return warning, bound, reach, limit
