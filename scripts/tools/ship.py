# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Copies trained weights into the bundle as models/<modality> with their licence, and optionally as models/model.pt."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bundle.command_line import plain_errors
from bundle.files import atomic_write
from bundle.networks.latent_guides import LATENT_GUIDES
from bundle.networks.model_set import GENERATION_NETWORKS, load_models
from bundle.networks.weights import WeightsError, write_info
from bundle.training.audit_networks import AUDIT_NETWORKS

__all__ = ["MOST_BYTES", "ship"]

NETWORKS = (*GENERATION_NETWORKS, *LATENT_GUIDES, "discriminator", *AUDIT_NETWORKS)
MOST_BYTES = 25 * 1024**2
"""Largest file size that the model zoo accepts without special arrangements."""


def ship(source: Path, models: Path, licence: str, main: bool) -> None:
    """Copies a complete set of matching weights.

    Args:
        source: folder of the trained set, including the discriminator.
        models: the bundle's folder of models; the set is copied to its subfolder named after the modality.
        licence: licence of the weights, for their JSON.
        main: whether to copy the generator to models/model.pt too, with its JSON beside it.

    Raises:
        WeightsError: the set is incomplete, its parts do not belong together, or a file is too large.
    """
    infos = load_models(source, names=NETWORKS).infos
    large = [name for name in NETWORKS if (source / f"{name}.pt").stat().st_size > MOST_BYTES]
    if large:
        raise WeightsError(f"{', '.join(large)} in {source} are above {MOST_BYTES} bytes. Train narrower networks.")
    target = models / infos["generator"]["modality"]
    for name in NETWORKS:
        _ship_pair(source / f"{name}.pt", target / f"{name}.pt", {**infos[name], "licence": licence})
    if main:
        _ship_pair(source / "generator.pt", models / "model.pt", {**infos["generator"], "licence": licence})


def _ship_pair(source: Path, target: Path, info: dict[str, Any]) -> None:
    with atomic_write(target) as temporary:
        shutil.copyfile(source, temporary)
    write_info(target, info)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
        arguments: command-line arguments; None for those of the process.
    """
    parser = argparse.ArgumentParser(prog="python -m scripts.tools.ship", description=__doc__)
    parser.add_argument("--source", required=True, type=Path, help="models folder of a training run")
    parser.add_argument("--models", default=Path("models"), type=Path, help="folder to ship in (default: %(default)s)")
    parser.add_argument(
        "--licence",
        default="Research only: models/LICENSE of the bundle. Trained on public images: docs/data_license.txt.",
        help="of the weights (default: %(default)s)",
    )
    parser.add_argument("--main", action="store_true", help="also make this generator models/model.pt")
    options = parser.parse_args(arguments)
    with plain_errors():
        ship(options.source, options.models, options.licence, options.main)
    print(f"Shipped {len(NETWORKS)} networks to {options.models}.")


if __name__ == "__main__":
    main()
