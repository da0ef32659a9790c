# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""``generate``: walked pairs become a cohort; a broken-off one is completed, a complete one verified."""

from __future__ import annotations

import logging
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import monai
import torch
from monai.engines import SupervisedEvaluator
from torch import Tensor

from bundle.allocator import keep_freed_memory
from bundle.cohort.datasheet import datasheet
from bundle.cohort.ledger import CohortError, WalkLedger, differing_keys
from bundle.cohort.paths import NEAREST, look_at_paths
from bundle.cohort.writer import verify_cohort, write_cohort
from bundle.data import ImageData
from bundle.files import sweep_temporary
from bundle.gate.gate import Gate
from bundle.lock import run_lock
from bundle.markup import file_size, printable
from bundle.networks.model_set import ModelSet

__all__ = ["generate", "join_processes", "prepare_pairs"]

logger = logging.getLogger(__name__)


def join_processes(device: str) -> None:
    """Lets the processes that PyTorch's launcher has started share the work; a single one goes on alone.

    Args:
        device: where they compute; of several GPUs, each process takes its own.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.distributed.is_initialized():
        idist.initialize("nccl" if device.startswith("cuda") else "gloo")


def prepare_pairs(
    batch: dict[str, Any], device: torch.device, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, Tensor, tuple[()], dict[str, Tensor]]:
    """Hands a block of pairs to the inferer: latents [P, 2, z_dim], and the labels [P] once more by keyword."""
    label = batch["label"].to(device, non_blocking=non_blocking)
    return batch["latent"].to(device, non_blocking=non_blocking), label, (), {"label": label}


def generate(
    evaluator: SupervisedEvaluator,
    ledger: WalkLedger,
    models: ModelSet,
    gate: Gate,
    output_dir: str,
    data: ImageData | None = None,
    squeezenet_file: str | None = None,
) -> None:
    """Makes a cohort, goes on with a broken-off one, or verifies a complete one.

    Where a complete one was made without `data`, the figure that needs them is drawn now.

    Of several processes, all walk and write images, and the first does the rest. While they do, they hold a lock on
    ``output_dir``, which the system lets go of when the first process ends, however it does.

    Args:
        evaluator: walks the pairs that the ledger asks for, and gives their outcome to the ledger.
        ledger: of this cohort.
        models: networks.
        gate: what judged the points.
        output_dir: gets ``cohort/`` and ``private/``.
        data: real training images, for the private figure of the distance to the nearest.
        squeezenet_file: LPIPS's trunk for that figure; None lets torchvision find it.

    Raises:
        CohortError: the folder holds another run's cohort, or a damaged one, or hardly anything passes the gate.
        InUseError: another run is making a cohort there.
    """
    keep_freed_memory()
    cohort, private = Path(output_dir) / "cohort", Path(output_dir) / "private"
    # A cohort takes its name when it is whole: one that is there can be verified beside any other run.
    is_complete = os.path.lexists(cohort)
    if is_complete:
        _verify(cohort, ledger.settings)
        if data is None or not idist.broadcast(float(not (private / NEAREST).exists())):
            return
    with run_lock(output_dir, private / "generate.lock"):
        if not os.path.lexists(cohort):
            _make(evaluator, ledger, models, gate, cohort, data, squeezenet_file)
        elif not is_complete:  # made by a run that has ended just now
            _verify(cohort, ledger.settings)
        else:
            _look_again(ledger, models, gate, private, data, squeezenet_file)


def _verify(cohort: Path, settings: dict[str, Any]) -> None:
    """Compares a cohort with its manifest and the settings, in the first process."""
    if idist.get_rank() > 0:
        return
    manifest = verify_cohort(cohort)
    differing = differing_keys(manifest["configuration"], settings)
    if differing:
        raise CohortError(
            f"{cohort} was made with other options ({', '.join(differing)}) and is not overwritten. Name another "
            f"output_dir, or remove it."
        )
    print(f"{printable(str(cohort))} is complete: {len(manifest['files'])} files, each as the manifest says.")


def _look_again(
    ledger: WalkLedger, models: ModelSet, gate: Gate, private: Path, data: ImageData | None, squeezenet_file: str | None
) -> None:
    """Looks at the paths of a complete cohort, whose training images were not named when it was made."""
    ledger.open()
    if idist.get_rank() > 0:
        return
    if next(ledger.due(), None) is None:
        look_at_paths(ledger, models, gate, private, data, squeezenet_file)
    else:
        logger.warning(
            "%s is not drawn: %s lacks walked pairs of the cohort. Name another output_dir to walk them anew.",
            private / NEAREST,
            ledger.folder,
        )


def _make(
    evaluator: SupervisedEvaluator,
    ledger: WalkLedger,
    models: ModelSet,
    gate: Gate,
    cohort: Path,
    data: ImageData | None,
    squeezenet_file: str | None,
) -> None:
    is_first = idist.get_rank() == 0
    private = cohort.parent / "private"
    if is_first:
        sweep_temporary(cohort.parent)
        sweep_temporary(private)
    ledger.open()
    if is_first:
        _announce(ledger, models, cohort.parent)
    if next(ledger.due(), None) is not None:
        evaluator.run()
    if is_first:
        look_at_paths(ledger, models, gate, private, data, squeezenet_file)
    manifest = _manifest(ledger, models)
    licence = str(models.infos["generator"].get("licence", "Not stated by whoever trained the networks."))
    images = ((label, image) for label in ledger.quotas for image in ledger.images(label))
    write_cohort(cohort, images, models.class_names, manifest, datasheet(manifest, licence))
    if not is_first:
        return
    judged = sum(counts["judged"] for counts in manifest["gate"].values())
    passed = sum(counts["passed"] for counts in manifest["gate"].values())
    print(
        f"{passed} of {judged} points passed the gate.\nThe cohort: {printable(str(cohort))}\n"
        f"Not to be shared: {printable(str(private))}"
    )


def _announce(ledger: WalkLedger, models: ModelSet, output_dir: Path) -> None:
    """Says what a run will take before it takes it."""
    done, wanted = ledger.done()
    info = models.infos["generator"]
    pixels = info["channels"] * info["resolution"] ** 2
    block = ledger.block_size * ledger.n_points
    paths = sum(-(-ledger.missing(label) // block) * ledger.block_size for label in ledger.quotas)
    # The pixels and points of each point in private/, and PNGs of two thirds of their pixels, as a rule, in cohort/.
    size = paths * ledger.n_points * (pixels + 8 * models.generator.w_dim) + 0.7 * wanted * pixels
    free = shutil.disk_usage(output_dir).free
    print(
        f"{wanted} images of {info['resolution']} x {info['resolution']} pixels, of which {done} are walked. The rest: "
        f"at least {paths} paths of {ledger.n_points} points; {file_size(size)} on a disk with {file_size(free)} free.",
        flush=True,
    )
    if size > free:
        logger.warning(
            "%s has %s free, and this cohort takes at least %s: the disk will be full before the end. Ask for fewer "
            "images, make room, or name another output_dir.",
            output_dir,
            file_size(free),
            file_size(size),
        )


def _manifest(ledger: WalkLedger, models: ModelSet) -> dict[str, Any]:
    info = models.infos["generator"]
    names = models.class_names
    return {
        "configuration": ledger.settings,
        "modality": info["modality"],
        "resolution": info["resolution"],
        "preprocessing": info.get("preprocessing"),
        "split_sha256": info["split_sha256"],
        "class_names": list(names),
        "gate": {names[label]: {"images": quota, **ledger.counts(label)} for label, quota in ledger.quotas.items()},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "monai": monai.__version__,
        },
    }
