# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

from bundle.cohort.datasheet import datasheet

CONFIGURATION = {"n_images": 1, "n_points": 5, "objective": "balanced", "seed": 0, "threshold": 1.0, "farthest": 1.5}


def test_names_and_licence_are_no_markup() -> None:
    counts = {"images": 1, "judged": 2, "recognised": 1, "mislabelled": 0, "unrealistic": 0, "near_duplicates": 0}
    manifest = {
        "configuration": CONFIGURATION | {"threshold": 0.25},
        "modality": "<b>xray</b>",
        "resolution": 32,
        "gate": {"a|<img src=x onerror=alert(1)>": counts},
    }
    text = datasheet(manifest, "CC\n# Approved for diagnosis\n<script>x</script>")
    assert "<" not in text
    assert "\n# Approved" not in text
    assert "| a\\|&lt;img src=x onerror=alert(1)&gt; | 1 | 2 | 1 | 0 | 0 | 0 |" in text
    assert "above 0.25" in text
    assert "above 1.5" in text


def test_ends_are_told_with_their_promise_and_its_limit() -> None:
    counts = {"images": 1, "judged": 2, "recognised": 1, "mislabelled": 0, "unrealistic": 0, "near_duplicates": 0}
    configuration: dict[str, Any] = dict(CONFIGURATION)
    manifest = {"configuration": configuration, "modality": "xray", "resolution": 32, "gate": {"normal": counts}}
    drawn = datasheet(manifest, "CC")
    assert "are random samples that were not walked; they are not among the images. A gate of" in drawn
    assert "k-same" not in drawn
    ksame = {"k": 5, "method": "laca", "centroids": {"<normal>": 12}, "fewest_patients": 11}
    configuration["ksame"] = ksame
    averaged = datasheet(manifest, "CC")
    assert "random samples" not in averaged
    assert "k-same centroids, k = 5: each is the mean of the latents (LACA" in averaged
    assert "number of centroids: &lt;normal&gt; 12" in averaged
    assert "Behind the two ends of a path stand at least 11 patients." in averaged
    assert "- No k-anonymity of this cohort. k = 5 holds for the ends of the paths" in averaged
    configuration["ksame"] = ksame | {"method": "ksalsa"}
    assert "moved from the mean of the latents" in datasheet(manifest, "CC")


def test_a_changed_configuration_is_told() -> None:
    counts = {"images": 1, "judged": 2, "recognised": 1, "mislabelled": 0, "unrealistic": 0, "near_duplicates": 0}
    configuration: dict[str, Any] = dict(CONFIGURATION)
    manifest = {"configuration": configuration, "modality": "xray", "resolution": 32, "gate": {"normal": counts}}
    assert "configuration was changed" not in datasheet(manifest, "CC")
    configuration["changed_configuration"] = {"gate#threshold": 1.0}
    text = datasheet(manifest, "CC").replace("\\", "")
    assert "changed besides its options: gate#threshold = 1.0.** What is said above" in text
    assert "95 %" not in text
    assert "75 %" not in text
    assert "set by hand" in text
