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
from bundle.data import DataError, open_dataset
from bundle.data.records import SPLITS
from bundle.training.audit_pairs import without_shared_patients
from bundle.training.audit_proof import prove_networks

__all__ = ["main"]


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
