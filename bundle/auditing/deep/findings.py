# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Turns the scores of shadow generators into the results of two attacks: on membership, and on canaries."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from bundle.auditing.controls import Control
from bundle.auditing.deep.attack import Attack, Row, mean_estimate, roc_estimates, roc_rows
from bundle.auditing.deep.canaries import REPEATS, chance_exposures, exposures, level_estimates
from bundle.auditing.deep.lira import fit, leave_one_out, log_likelihood_ratio, standardised
from bundle.auditing.deep.scores import EMBEDDED, SPACES
from bundle.auditing.resampling import Estimate

__all__ = ["canary_attack", "membership_attack", "ratios"]

# Spaces in which single canaries are told apart: their marks are small.
CANARY_SPACES = ("lpips", "pixels")

LIRA = (
    "Does a generator come nearer to an image if it was trained on it? Each shadow generator is trained on a random "
    "half of the patients of train and test, by the recipe of configs/train_gan.json. Every shadow is attacked by all "
    "others: this is what the recipe leaks at this length and resolution. The audited generator is attacked by all "
    "shadows, at their resolution. Both are lower bounds: more shadows, more samples, other distances or white-box "
    "signals may find more."
)
CANARIES = (
    "How often must an outlier be in the training set until the generator shows it? Exposure is the number of bits by "
    "which samples betray an outlier's rank among never-inserted ones of the same kind. Outliers are validation images "
    "that were turned upside down, bent and marked with random cells: patients who differ less from others may be "
    "exposed less. One generator was trained on them, so the intervals do not hold for other trainings."
)


def ratios(shadows: Mapping[str, Tensor], member: Tensor, target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the log likelihood ratio [P] of membership in a target's training set, by space.

    Args:
        shadows: scores [S, P] by space.
        member: whether each shadow was trained on each image, bool [S, P].
        target: scores [P] of the attacked generator by space.
    """
    return {
        space: log_likelihood_ratio(standardised(target[space][None])[0], fit(standardised(scores), member))
        for space, scores in shadows.items()
    }


def membership_attack(
    shadows: Mapping[str, Tensor],
    member: Tensor,
    relabelled: Tensor,
    patients: Tensor,
    audited: tuple[dict[str, Tensor], Tensor] | str,
    memorised: tuple[dict[str, Tensor], Tensor] | None,
    seed: int,
) -> Attack:
    """Reports the likelihood-ratio attack.

    Args:
        shadows: scores [S, P] of the shadows by space.
        member: whether each shadow was trained on each image, bool [S, P].
        relabelled: memberships of other random halves, bool [S, P], which no shadow was trained on: the attack must
            find nothing.
        patients: patient number [P] of each image.
        audited: log likelihood ratios [P] of the audited generator by space, and whether each image is a member, bool
            [P]; or the reason why it is not attacked.
        memorised: the same of a generator that should memorise; None if there is none.
        seed: seed of the bootstrap draws.
    """
    rows: list[Row] = []
    nothing = []
    for space, scores in shadows.items():
        standard = standardised(scores)
        found = roc_estimates(leave_one_out(standard, member), member, patients, seed)
        rows += roc_rows(f"recipe_{space}", f"the recipe, {SPACES[space]}", found)
        nothing.append(roc_estimates(leave_one_out(standard, relabelled), relabelled, patients, seed)["auc"])
    for space in shadows:
        title = f"the audited generator, {SPACES[space]}"
        rows += roc_rows(f"audited_{space}", title, _of_target(audited, space, patients, seed))
    auc = mean_estimate(nothing)
    passed = None if auc.withheld else auc.low <= 0.5 <= auc.high
    words = "halves drawn at random, which no shadow was trained on: mean AUC of all spaces"
    controls = [Control("relabelled", words, auc, "compatible with 0.5", passed)]
    if memorised is not None:
        aucs = [_of_target(memorised, space, patients, seed)["auc"] for space in shadows if space != EMBEDDED]
        auc = mean_estimate(aucs)
        words = f"a generator made to memorise {int(memorised[1].sum())} images: mean AUC of its members"
        controls.append(Control("memorised", words, auc, "above 0.5", None if auc.withheld else auc.low > 0.5))
    return Attack("lira", "Membership by shadow generators (LiRA)", LIRA, tuple(rows), tuple(controls))


def _of_target(
    target: tuple[dict[str, Tensor], Tensor] | str, space: str, patients: Tensor, seed: int
) -> dict[str, Estimate]:
    reason = target if isinstance(target, str) else ""
    if not reason and space == EMBEDDED:
        reason = "the embedding has seen the members and not the others"
    if isinstance(target, str) or reason:
        return dict.fromkeys(("auc", "tpr_1", "tpr_5"), Estimate(reason=reason))
    return roc_estimates(target[0][space][None], target[1][None], patients, seed)


def canary_attack(
    scores: Mapping[str, Tensor], others: Mapping[str, Tensor], patients: Tensor, n_canaries: int, seed: int
) -> Attack:
    """Reports the exposure of canaries against their number of repeats.

    Args:
        scores: scores [C] of canaries and candidates by space, by the generator with the canaries.
        others: scores [S, C] by generators without.
        patients: whose image each canary and each candidate was made of, [C].
        n_canaries: number of canaries of each level.
        seed: seed of the bootstrap draws.
    """
    chance, least, most = chance_exposures(n_canaries)
    whose = patients[: len(REPEATS) * n_canaries].view(len(REPEATS), n_canaries)
    rows, controls = [], []
    for space in CANARY_SPACES:
        found = level_estimates(exposures(scores[space], others[space], n_canaries), whose, seed)
        for times, value in zip(REPEATS, found, strict=True):
            title = f"exposure in bits, {SPACES[space]}: inserted {times} times"
            if times:
                rows.append(Row(f"{space}_{times}", title, value, f"{chance:.2f}"))
                continue
            passed = None if value.withheld else least <= value.value <= most
            words = f"between {least:.2f} and {most:.2f}, where chance puts 99 % of such means"
            controls.append(Control(f"{space}_never", title, value, words, passed))
    return Attack("canaries", "Canaries", CANARIES, tuple(rows), tuple(controls))
