# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The measures of an audit: their titles, the spaces in which they are computed, and their ideal values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bundle.metrics.features import FEATURES
from bundle.metrics.lpips import LPIPS_TRUNK
from bundle.metrics.reidentification import is_proven

__all__ = ["FIDELITY", "MEASURES", "PRIVACY", "Measure", "with_proof"]


@dataclass(frozen=True)
class Measure:
    """The description of a measure, for one line of the report.

    Attributes:
        title: name of the measure.
        space: network or features from which the measure is computed.
        ideal: value for a cohort that looks real and discloses no patient.
        is_share: whether the measure is a share, to be shown in percent.
    """

    title: str
    space: str
    ideal: str
    is_share: bool = False


_EMBEDDING = "contrastive embedding"
_DISTANCE = "contrastive embedding, 1 - correlation"
_VERIFIER = "Siamese verifier"
_FEATURES = f"{FEATURES} features"
_NOT_ABOVE, _NOT_BELOW, _NEAR = "not above test images'", "not below test images'", "near test images'"

#: Privacy measures by their names in results.json, in the order of the report.
PRIVACY = {
    "copy_rate": Measure("Copy rate", _EMBEDDING, _NOT_ABOVE, True),
    "dcr_p5": Measure("Distance to the closest record (DCR), 5th percentile", _DISTANCE, _NOT_BELOW),
    "nndr_p5": Measure("Nearest-neighbour distance ratio (NNDR), 5th percentile", _DISTANCE, _NOT_BELOW),
    "authenticity": Measure("Authenticity: share that is no noisy copy", _DISTANCE, _NOT_BELOW, True),
    "mml": Measure("mmL: mean LPIPS to the nearest training image", LPIPS_TRUNK, _NOT_BELOW),
    "lpips_p5": Measure("LPIPS to the nearest training image, 5th percentile", LPIPS_TRUNK, _NOT_BELOW),
    "reidentified": Measure("Re-identified: taken for a training patient by the verifier", _VERIFIER, _NOT_ABOVE, True),
    "reidentification_auc": Measure("Re-identification: AUC against test images", _VERIFIER, "0.5 or below"),
    "same_patient_named": Measure(
        "Embedding and verifier name the same patient", f"{_EMBEDDING}, {_VERIFIER}", _NOT_ABOVE, True
    ),
    "other_images": Measure(
        "Other images of the nearest patient (other eye, other visit) against those of others: AUC",
        _VERIFIER,
        _NOT_ABOVE,
    ),
    "aa_train": Measure(
        "Nearest-neighbour adversarial accuracy against training images", LPIPS_TRUNK, "that against held-out images"
    ),
    "aa_hold": Measure(
        "Nearest-neighbour adversarial accuracy against held-out images", LPIPS_TRUNK, "0.5: as if they were real"
    ),
    "privacy_loss": Measure("Privacy loss: the latter less the former", LPIPS_TRUNK, "0 or below"),
    "gan_leaks_auc": Measure("GAN-Leaks, calibrated, sets of one size: AUC", LPIPS_TRUNK, "0.5 or below"),
    "gan_leaks_whole_auc": Measure("GAN-Leaks, calibrated, the whole cohort: AUC", LPIPS_TRUNK, "0.5 or below"),
    "gan_leaks_whole_tpr": Measure("the same: members found at 1 % false alarms", LPIPS_TRUNK, "1 % or below", True),
}

#: Measures of fidelity and variety, likewise.
FIDELITY = {
    "kid": Measure("KID to training images", _FEATURES, _NEAR),
    "frechet": Measure("Fréchet distance to training images", _FEATURES, _NEAR),
    "precision": Measure("Precision: within the reach of training images", _FEATURES, _NEAR, True),
    "recall": Measure("Recall: training images within reach", _FEATURES, _NEAR, True),
    "duplicates": Measure("Collapse: has a near-duplicate in its own set", _EMBEDDING, _NEAR, True),
    "variety": Measure("Collapse: mean LPIPS between two images", LPIPS_TRUNK, _NEAR),
}

MEASURES = PRIVACY | FIDELITY


def with_proof(measures: Mapping[str, Measure], verifier: Mapping[str, Any]) -> dict[str, Measure]:
    """Returns the measures, with the proof of re-identification stated beside those that rest on the verifier.

    Args:
        measures: measures by name.
        verifier: content of the verifier's JSON, of which ``scores.other_images`` is the proof, see
            `bundle.metrics.reidentification.recognition_of_others`.
    """
    proof = verifier.get("scores", {}).get("other_images")
    return {
        key: replace(measure, space=f"{measure.space}; {_proof_text(proof)}") if _VERIFIER in measure.space else measure
        for key, measure in measures.items()
    }


def _proof_text(proof: Mapping[str, Any] | None) -> str:
    found = ""
    if proof is not None and isinstance(proof.get("auc"), Mapping):
        auc, one, five = (proof[name] for name in ("auc", "found_at_1_percent", "found_at_5_percent"))
        found = (
            f"AUC {auc['value']:.2f} [{auc['low']:.2f}, {auc['high']:.2f}] on other images of "
            f"{proof['patients_with_several']} of {proof['patients']} held-out patients; of pairs of one patient, "
            f"{one['value']:.0%} [{one['low']:.0%}, {one['high']:.0%}] are found at 1 % false alarms, "
            f"{five['value']:.0%} [{five['low']:.0%}, {five['high']:.0%}] at 5 %"
        )
    if is_proven(proof):
        return f"the verifier is proven: {found}"
    lacking = found or "no measurement with an interval"
    return f"the verifier is not proven on other images of a patient ({lacking}), so this row is only about copies"
