# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""What a cohort is to be: the options of ``generate``, completed and checked."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bundle.cohort.ledger import CohortError, WalkLedger
from bundle.data import MODALITIES, Modality
from bundle.files import content_digest
from bundle.latent.pairs import pairs_per_block
from bundle.networks.latent_guides import LATENT_GUIDES
from bundle.networks.model_set import GENERATION_NETWORKS, ModelSet
from bundle.walk.inferer import SETTINGS
from bundle.walk.objective import make_objective

__all__ = [
    "default_guides",
    "default_output_dir",
    "generation_networks",
    "generation_settings",
    "plan_ledger",
    "walk_weights",
]

logger = logging.getLogger(__name__)


def default_guides(models_dir: str, objective: str) -> str:
    """Says what the walk asks about its points.

    Args:
        models_dir: folder of the networks.
        objective: name of the walk's objective.

    Returns:
        ``latent`` where the guides' students are there, else ``image``; the published algorithm knows of none.
    """
    if objective == "published":
        return "image"
    if all((Path(str(models_dir)) / f"{name}.json").is_file() for name in LATENT_GUIDES):
        return "latent"
    logger.warning(
        "%s has no latent guides: the walk asks the guides themselves, at many times the cost. "
        "configs/train_latent_guides.json trains some.",
        models_dir,
    )
    return "image"


def walk_weights(modality: str | Modality) -> dict[str, float]:
    """Looks up what the modality's walks give other weights to than the objective itself, by the names of its fields.

    Of a name that is no preset, `check_options` has yet to complain.
    """
    preset = MODALITIES.get(modality, Modality) if isinstance(modality, str) else modality
    return {"lambda_class": preset.lambda_class, "lambda_prior": preset.lambda_prior}


def generation_networks(guides: str) -> tuple[str, ...]:
    """Names the networks that a walk on these guides and the gate need."""
    return (*GENERATION_NETWORKS, *(LATENT_GUIDES if guides == "latent" else ()))


def generation_settings(
    models: ModelSet,
    modality: str | Modality,
    n_images: int,
    n_points: int,
    seed: int,
    classes: str | int | Sequence[str | int] | None,
    objective: str,
    guides: str,
    weights: Mapping[str, float],
    threshold: float,
    device: str | torch.device,
) -> dict[str, Any]:
    """Lists everything that the bits of a cohort depend on.

    Args:
        models: networks.
        modality: whose weights are the default; must be that of the models.
        n_images: images of the cohort.
        n_points: points of a path.
        seed: of the end points.
        classes: names or numbers of the classes wanted; None for all.
        objective: name of the walk's objective.
        guides: what the walk asks about its points, ``latent`` or ``image``.
        weights: of the objective's terms, see `bundle.walk.objective.make_objective`.
        threshold: highest identity probability that the gate lets pass.
        device: where the walk is computed.

    Returns:
        Plain values.

    Raises:
        CohortError: the models are of another kind of image or know no such class, there are more classes than images,
            or the published algorithm is to walk on latent guides.
    """
    _check_modality(models, modality)
    names = models.class_names
    several = isinstance(classes, list | tuple)
    wanted: list[Any] = list(names) if classes is None else list(classes) if several else [classes]  # type: ignore[arg-type]
    if not wanted:
        raise CohortError(f"classes: the list is empty. Name some of {', '.join(names)}, or leave classes out for all.")
    chosen = []
    for value in wanted:
        name = names[value] if type(value) is int and 0 <= value < len(names) else value
        if name not in names:
            raise CohortError(f"classes: {value!r} is not a class of these models, which know {', '.join(names)}.")
        chosen.append(str(name))
    if objective == "published" and guides == "latent":
        raise CohortError("guides: the published algorithm walks on the guides themselves. Leave guides out.")
    if n_images < len(set(chosen)):
        raise CohortError(
            f"n_images: {n_images} images cannot show {len(set(chosen))} classes. Ask for more, or for fewer classes."
        )
    return {
        "n_images": n_images,
        "n_points": n_points,
        "seed": seed,
        "classes": sorted(set(chosen), key=names.index),
        "objective": objective,
        "guides": guides,
        "walk": dataclasses.asdict(SETTINGS[objective]),
        "weights": dataclasses.asdict(make_objective(objective, weights)),
        "threshold": threshold,
        "block_size": pairs_per_block(guides, n_points),
        "device": torch.device(device).type,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "models": models.sha256(),
    }


def _check_modality(models: ModelSet, modality: str | Modality) -> None:
    trained = models.infos["generator"]["modality"]
    if str(modality) != trained:
        raise CohortError(
            f"modality: the models are of {trained} images, and the settings are those of {modality} images. Name the "
            f"configuration file of {trained} behind configs/plan.json (--config_file "
            f"\"['configs/plan.json','configs/{trained}.json']\"; xray needs none), or other models."
        )


def default_output_dir(modality: str, settings: dict[str, Any]) -> str:
    """Names a folder after the options, so that other options never meet another run's cohort."""
    return f"output/{modality}-{content_digest(settings, 10)}"


def plan_ledger(output_dir: str, settings: dict[str, Any], class_names: Sequence[str]) -> WalkLedger:
    """Makes the ledger of a cohort; its images are shared out evenly among the classes."""
    share, rest = divmod(settings["n_images"], len(settings["classes"]))
    quotas = {
        list(class_names).index(name): share + (position < rest) for position, name in enumerate(settings["classes"])
    }
    folder = Path(output_dir) / "private" / "walk"
    return WalkLedger(folder, settings, quotas, settings["n_points"], settings["block_size"])
