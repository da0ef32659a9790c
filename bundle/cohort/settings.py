# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Settings of a cohort: the options of ``generate``, completed and checked."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bundle.cohort.even import even_quotas
from bundle.cohort.ksame import KSameSettings
from bundle.cohort.ledger import CohortError, WalkLedger
from bundle.data import Modality, get_modality
from bundle.files import content_digest
from bundle.gate.gate import gate_apart
from bundle.latent.pairs import pairs_per_block
from bundle.latent.partners import number_of_pairs
from bundle.networks.latent_guides import LATENT_GUIDES
from bundle.networks.model_set import GENERATION_NETWORKS, ModelInfos
from bundle.options import OptionError
from bundle.walk.objective import BalancedObjective, PublishedObjective
from bundle.walk.path import WalkSettings

__all__ = [
    "CohortSettings",
    "chosen_classes",
    "cohort_settings",
    "default_guides",
    "default_output_dir",
    "generation_networks",
    "plan_ledger",
]

logger = logging.getLogger(__name__)

# Settings that are left out where they say nothing.
_OPTIONAL = ("changed_configuration", "ksame")


@dataclass(frozen=True)
class CohortSettings:
    """Everything that the bits of a cohort depend on.

    Attributes:
        n_images: images in the cohort.
        n_points: points per path, both ends included.
        seed: random seed of the end points, or of the pairs of centroids.
        classes: names of the classes, in the order of their labels.
        objective: name of the walk's objective.
        guides: kind of guides that the walk evaluates, ``latent`` or ``image``.
        walk: step count, learning rate and stopping rule of the optimiser.
        weights: weights and other parameters of the objective.
        threshold: highest identity probability that passes the gate.
        farthest: largest distance from real images that passes the gate.
        apart: for each class of the models the distance below which two images are near-duplicates.
        block_size: pairs that are walked together.
        device: type of the device that computes, ``cpu`` or ``cuda``.
        torch: version of PyTorch.
        threads: number of PyTorch's CPU threads.
        models: SHA-256 of each network's weights.
        changed_configuration: other parts of the configuration that a call has changed, see
            `bundle.options.check_options`.
        ksame: what a cohort between centroids depends on; None for one between random samples.
    """

    n_images: int
    n_points: int
    seed: int
    classes: list[str]
    objective: str
    guides: str
    walk: WalkSettings
    weights: dict[str, float]
    threshold: float
    farthest: float
    apart: list[float]
    block_size: int
    device: str
    torch: str
    threads: int
    models: dict[str, str]
    changed_configuration: dict[str, Any] = field(default_factory=dict)
    ksame: KSameSettings | None = None

    def content(self) -> dict[str, Any]:
        """Returns plain values for JSON; ``changed_configuration`` and ``ksame`` are left out if there is nothing."""
        content = dataclasses.asdict(self)
        return {name: value for name, value in content.items() if name not in _OPTIONAL or value}


def default_guides(models_dir: str) -> str:
    """Chooses the kind of guides that the walk evaluates.

    Args:
        models_dir: folder of the networks.

    Returns:
        ``latent`` if the folder has latent guides, otherwise ``image``.
    """
    if all((Path(str(models_dir)) / f"{name}.json").is_file() for name in LATENT_GUIDES):
        return "latent"
    logger.warning(
        "%s has no latent guides: the walk evaluates the guides themselves, at many times the cost. "
        "configs/train_latent_guides.json trains some.",
        models_dir,
    )
    return "image"


def generation_networks(guides: str) -> tuple[str, ...]:
    """Returns the names of the networks that the gate and a walk on these guides need."""
    return (*GENERATION_NETWORKS, *(LATENT_GUIDES if guides == "latent" else ()))


def cohort_settings(
    models: ModelInfos,
    modality: str | Modality,
    n_images: int | None,
    n_points: int,
    seed: int,
    classes: Sequence[str],
    objective: BalancedObjective | PublishedObjective,
    walk_settings: WalkSettings,
    weights: Mapping[str, float],
    guides: str,
    threshold: float,
    farthest: float,
    device: str | torch.device,
    changed: Mapping[str, Any],
    ksame: KSameSettings | None = None,
) -> CohortSettings:
    """Completes and checks the options of a cohort.

    Args:
        models: JSON descriptions of the networks.
        modality: modality of the configuration; must be that of the models.
        n_images: see `CohortSettings`; with ``ksame``, that says it.
        n_points: see `CohortSettings`.
        seed: see `CohortSettings`.
        classes: result of `chosen_classes`.
        objective: loss that the walk minimises.
        walk_settings: step count, learning rate and stopping rule of the optimiser.
        weights: the options ``lambda_class``, ``lambda_prior``, ``lambda_real`` and ``kappa``; the objective must have
            them.
        guides: ``latent`` or ``image``.
        threshold: highest identity probability that passes the gate.
        farthest: largest distance from real images that passes the gate.
        device: device that computes the walk.
        changed: result of `bundle.options.check_options`.
        ksame: result of `bundle.cohort.ksame.ksame_settings`.

    Raises:
        CohortError: the models are of another modality, there are more classes than images, or the published objective
            is combined with latent guides.
        OptionError: a weight was given that the objective has not taken.
    """
    _check_modality(models, modality)
    _check_weights(objective, weights, get_modality(modality), models)
    if ksame is not None:
        n_images = sum(ksame.images.values())
    assert n_images is not None
    _check_combination(objective, guides, n_images, len(classes))
    return CohortSettings(
        n_images=n_images,
        n_points=n_points,
        seed=seed,
        classes=list(classes),
        objective=objective.name,
        guides=guides,
        walk=walk_settings,
        weights=dataclasses.asdict(objective),
        threshold=threshold,
        farthest=farthest,
        apart=gate_apart(models),
        block_size=pairs_per_block(guides, n_points),
        device=torch.device(device).type,
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        models=models.sha256(),
        ksame=ksame,
        **changed,
    )


def _check_combination(
    objective: BalancedObjective | PublishedObjective, guides: str, n_images: int, n_classes: int
) -> None:
    if isinstance(objective, PublishedObjective) and guides == "latent":
        raise CohortError("guides: the published algorithm walks on the guides themselves. Leave guides out.")
    if n_images < n_classes:
        raise CohortError(
            f"n_images: {n_images} images cannot show {n_classes} classes. Ask for more, or for fewer classes."
        )


def _check_weights(
    objective: BalancedObjective | PublishedObjective,
    weights: Mapping[str, float],
    modality: Modality,
    models: ModelInfos,
) -> None:
    """Raises an OptionError for a weight that does not reach the objective, as where an overlay replaces that."""
    is_published = isinstance(objective, PublishedObjective)
    scores = models.infos["identity_guide"].get("scores", {})
    for name, value in weights.items():
        default = scores.get("stranger_divergence", value) if name == "kappa" else getattr(modality, name)
        if value != (default if is_published else getattr(objective, name)):
            raise OptionError(
                [f"--{name} {value:g} does not reach the objective. Set it in the file that changes that."]
            )


def chosen_classes(names: Sequence[str], classes: str | int | Sequence[str | int] | None) -> list[str]:
    """Returns the names of the classes wanted, each once, in the order of their labels.

    Args:
        names: name of each label.
        classes: names or labels of the classes wanted; None for all.

    Raises:
        CohortError: the models do not know such a class, or none is wanted.
    """
    several = isinstance(classes, list | tuple)
    wanted: list[Any] = list(names) if classes is None else list(classes) if several else [classes]  # type: ignore[arg-type]
    if not wanted:
        raise CohortError(f"classes: the list is empty. Name some of {', '.join(names)}, or leave classes out for all.")
    chosen = set()
    for value in wanted:
        name = names[value] if type(value) is int and 0 <= value < len(names) else value
        if name not in names:
            raise CohortError(f"classes: {value!r} is not a class of these models, which know {', '.join(names)}.")
        chosen.add(str(name))
    return sorted(chosen, key=list(names).index)


def _check_modality(models: ModelInfos, modality: str | Modality) -> None:
    trained = models.infos["generator"]["modality"]
    if str(modality) != trained:
        raise CohortError(
            f"modality: the models are of {trained} images, and the settings are those of {modality} images. Name the "
            f"configuration file of {trained} behind configs/plan.json (--config_file "
            f"\"['configs/plan.json','configs/{trained}.json']\"; xray needs none), or other models."
        )


def default_output_dir(modality: str, settings: CohortSettings) -> str:
    """Returns a folder name derived from the options, so that runs with other options use other folders."""
    return f"output/{modality}-{content_digest(settings.content(), 10)}"


def plan_ledger(output_dir: str, settings: CohortSettings, class_names: Sequence[str]) -> WalkLedger:
    """Builds the ledger of a cohort: its images of each class, and the pairs of centroids that there are for them."""
    label_of = {name: label for label, name in enumerate(class_names)}
    ksame = settings.ksame
    images = even_quotas(settings.n_images, settings.classes) if ksame is None else ksame.images
    pairs = None if ksame is None else {label_of[name]: number_of_pairs(n) for name, n in ksame.centroids.items()}
    return WalkLedger(
        Path(output_dir) / "private" / "walk",
        settings.content(),
        {label_of[name]: number for name, number in images.items()},
        settings.n_points,
        settings.block_size,
        settings.apart,
        pairs,
    )
