# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Measures how well audit networks recognise patients in other images, on people whom the networks have not seen.

Prints aggregates only, and with --record keeps them in the networks' JSON files, from which audits report them.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bundle.command_line import plain_errors
from bundle.data import DataError, ImageData, open_dataset
from bundle.data.records import SPLITS
from bundle.networks.weights import WeightsError, load_weights, write_info
from bundle.training.audit_networks import AUDIT_NETWORKS, DIGEST, prove
from bundle.training.audit_pairs import without_shared_patients

__all__ = ["main", "prove_networks"]


def prove_networks(
    models_dir: Path, data: ImageData, splits: Sequence[str], seed: int, record: bool
) -> dict[str, dict[str, Any]]:
    """Measures both audit networks.

    Args:
        models_dir: folder of the networks.
        data: images of people of whom several have several images; those with an image that a network was trained on
            are left out.
        splits: splits whose images are used.
        seed: seed of the choice of images, if there are too many, and of the bootstrap.
        record: whether the result replaces ``scores.other_images`` in the networks' JSON files.

    Returns:
        Result of `bundle.metrics.reidentification.recognition_of_others` by network.

    Raises:
        WeightsError: a network is missing, or is for another kind of image.
        DataError: there are no two different images of a person whom the networks have not seen.
    """
    loaded = {name: load_weights(models_dir / f"{name}.pt", required=("modality", "seen")) for name in AUDIT_NETWORKS}
    proofs = {}
    for name, (network, info) in loaded.items():
        if not isinstance(network, AUDIT_NETWORKS[name]) or info["modality"] != data.modality.name:
            raise WeightsError(f"{models_dir / name}.pt is for {info['modality']}. Name its --modality.")
        seen = set(info["seen"])
        known = {
            record.patient_id
            for record, digest in zip(data.records(SPLITS), data.digests(SPLITS), strict=True)
            if digest[:DIGEST] in seen
        }
        unseen = data.without_patients(known)
        proofs[name] = prove(network, unseen, seed, splits) if unseen.records(splits) else {"pairs": 0}
        if not proofs[name]["pairs"]:
            raise DataError(f"There are no images of people whom {name} has not seen, two different ones of one.")
        if record:
            info = {**info, "scores": {**info.get("scores", {}), "other_images": proofs[name]}}
            write_info(models_dir / f"{name}.pt", info)
    return proofs


def _layout(text: str) -> Any:
    if not text.startswith("{"):
        return text
    try:
        return dict(ast.literal_eval(text))
    except (SyntaxError, TypeError, ValueError) as error:
        raise DataError(
            f"--layout {text!r} cannot be read. Write the columns of a table as in "
            "{'image': 'id_code', 'label': 'diagnosis'}."
        ) from error


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
    return str(value)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
        arguments: command-line arguments; None for those of the process.
    """
    parser = argparse.ArgumentParser(prog="python -m scripts.tools.prove_reidentification", description=__doc__)
    parser.add_argument("--models_dir", required=True, type=Path, help="folder of audit_embedding and audit_verifier")
    parser.add_argument("--dataset_dir", required=True, nargs="+", help="images, several of a patient: folders")
    parser.add_argument("--output_dir", required=True, type=Path, help="gets the folder private, with the split file")
    parser.add_argument("--trained_on", nargs="+", help="the networks' training images; people in both are left out")
    parser.add_argument("--splits", default=["val", "test"], nargs="+", choices=SPLITS, help="(default: val test)")
    parser.add_argument("--layout", default="auto", help="layout of dataset_dir, as for check_data")
    parser.add_argument("--modality", default="xray", help="preset of the images (default: %(default)s)")
    parser.add_argument("--resolution", default=64, type=int, help="side in pixels (default: %(default)s)")
    parser.add_argument("--seed", default=0, type=int, help="of splits and bootstrap (default: %(default)s)")
    parser.add_argument("--record", action="store_true", help="keep the result in the networks' JSON files")
    options = parser.parse_args(arguments)
    opened = (options.modality, options.resolution, options.seed)
    with plain_errors():
        layout = _layout(options.layout)
        data = open_dataset(options.dataset_dir, options.output_dir, *opened, layout=layout)
        if options.trained_on:
            trained_on = open_dataset(options.trained_on, options.output_dir / "trained_on", *opened)
            data = without_shared_patients(data, trained_on)
        proofs = prove_networks(options.models_dir, data, options.splits, options.seed, options.record)
    for name, proof in proofs.items():
        print(name, *(f"  {key}: {_shown(value)}" for key, value in proof.items()), sep="\n")


if __name__ == "__main__":
    main()
