# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The audit as an Ignite engine with one iteration per step; the last step writes the report."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bundle.auditing.assessment import Assessment, Estimates, assess
from bundle.auditing.catalogue import FIDELITY, MEASURES, PRIVACY, Measure, with_proof
from bundle.auditing.deep.audit import DeepAudit
from bundle.auditing.deep.settings import DeepSettings
from bundle.auditing.distances import Distances
from bundle.auditing.images import Cohort, RealData, read_pixels
from bundle.auditing.orientations import UPRIGHT, TransformedCopies, find_transformed_copies
from bundle.auditing.preprocessing import choose_preprocessing
from bundle.auditing.reference import VERIFIER, Reference, reference_key
from bundle.auditing.report import write_private, write_report
from bundle.auditing.resampling import rounded
from bundle.auditing.single_images import FALSE_ALARMS
from bundle.auditing.tables import markdown_tables
from bundle.auditing.verdict import Verdict, identical_images, verdict_of
from bundle.data import DataError, ImageData
from bundle.data.records import Record
from bundle.files import content_digest, private_folder, write_json, write_text
from bundle.metrics.distribution import kid
from bundle.metrics.features import FEATURES, squeezenet_features
from bundle.metrics.lpips import LPIPS_TRUNK
from bundle.steps import Step, StepEngine, Tensors

__all__ = ["AuditEngine"]

# Format version of the kept results; to be increased whenever their content changes.
FORMAT = 9
# Share of copies of a kind from which they count as found reliably.
RELIABLE = 0.9
# CPU-milliseconds of the last step, for the progress bar.
CONCLUSION_MS = 30_000.0


def _check_split(cohort: Cohort, data: ImageData) -> None:
    made_with = cohort.manifest.get("split_sha256")
    if made_with is not None and made_with != data.split_sha256:
        raise DataError(
            "The cohort was made by networks that were trained with another split of the data, says its manifest. Name "
            "their models_dir and the images they were trained on as dataset_dir."
        )


def _unlike(
    x: torch.Tensor, y: torch.Tensor, squeezenet_file: str | os.PathLike[str] | None, device: str | torch.device
) -> float:
    """Returns the KID of two sets of images, or the mean distance of their features where one has a single image."""
    x, y = (squeezenet_features(side, squeezenet_file, device=device) for side in (x, y))
    return kid(x, y) if min(len(x), len(y)) > 1 else float(torch.cdist(x, y).mean())


class AuditEngine(StepEngine):
    """Audits a cohort and writes the report.

    An interrupted run resumes at the interrupted step: the results of the steps are kept in ``private/audit``, in a
    folder named after a hash of everything that they depend on.

    Args:
        cohort: synthetic images.
        data: real images, at the resolution of the audit.
        networks: networks ``audit_embedding`` and ``audit_verifier``.
        infos: content of the JSON file of each network, by name.
        output_dir: folder for ``report.html``, ``results.json``, ``tables.md`` and ``private/``.
        seed: seed of all random choices and bootstrap draws.
        cohort_preprocessing: one of `bundle.auditing.preprocessing.PREPROCESSING`.
        squeezenet_file: file of the SqueezeNet 1.1 weights; None for those that torchvision downloads or has cached.
        changed: changes of the configuration to be listed in the report, from `bundle.options.check_options`.
        device: device of the computation.
        handlers: further Ignite handlers.
        deep: options of the attacks on the generator; None to leave them out.

    Attributes:
        verdict: conclusion; None until the engine has run.
        copies: which images the rules of the single image, of identical and of transformed images stop, bool [N]; empty
            until the engine has run.
        second: audit of the cohort without these images, if there was one; see `bundle.auditing.removal`.
        results: content of results.json; empty until the engine has run.

    Raises:
        DataError: a split is empty, the cohort was made with another split of the data, or output_dir holds the results
            of another audit.
    """

    def __init__(
        self,
        cohort: Cohort,
        data: ImageData,
        networks: dict[str, nn.Module],
        infos: dict[str, dict[str, Any]],
        output_dir: str | os.PathLike[str],
        seed: int = 0,
        cohort_preprocessing: str = "auto",
        squeezenet_file: str | os.PathLike[str] | None = None,
        changed: Mapping[str, Any] | None = None,
        device: str | torch.device = "cpu",
        handlers: Sequence[Any] | None = None,
        deep: DeepSettings | None = None,
    ) -> None:
        super().__init__("auditing", handlers)
        _check_split(cohort, data)
        self.cohort, self.data, self.infos, self.seed, self.changed = cohort, data, infos, seed, changed or {}
        self._settings = (seed, cohort_preprocessing, squeezenet_file, changed, device)
        self.output_dir = Path(output_dir)
        self.real = RealData(data)

        unlike = partial(_unlike, squeezenet_file=squeezenet_file, device=device)
        preset, self.treatment = choose_preprocessing(cohort, data, cohort_preprocessing, unlike)
        self.preprocessing = preset.preprocessing
        self.pixels = read_pixels([record.image for record in cohort.records], preset, data.resolution, "the cohort")
        key = {
            "format": FORMAT,
            "cohort": [cohort.digests, preset.preprocessing, cohort.holds, cohort.not_judged, cohort.filtered],
            "reference": reference_key(self.real, infos, squeezenet_file),
            "seed": seed,
            "reidentification": self._proof(),
            **({} if deep is None else {"deep": [deep.plain(), deep.recipe(), deep.generator_sha256()]}),
            **self.changed,
        }
        self.audit_id = content_digest(key)
        self._check_output_dir()
        folder = self.output_dir / "private" / "audit" / self.audit_id
        reference = Reference(self.real.sides, networks, folder / "real", seed, squeezenet_file, device)
        self.distances = Distances(self.pixels, reference, folder, seed)
        self.deep: DeepAudit | None = None
        if deep is not None:
            self.deep = DeepAudit(deep, self.real, self.distances, cohort.labels, folder / "deep", seed, device)
        conclusion = Step("conclusion", CONCLUSION_MS, self._conclude)
        self.steps = [
            *reference.steps(),
            reference.altered_step(),
            reference.search_step(),
            *reference.copies_steps(),
            *self.distances.steps(),
            self.distances.search_step(),
            *(self.deep.steps() if self.deep else ()),
            conclusion,
        ]
        self.verdict: Verdict | None = None
        self.copies = torch.zeros(0, dtype=torch.bool)
        self.second: AuditEngine | None = None
        self.results: dict[str, Any] = {}

    def again(
        self,
        cohort: Cohort,
        networks: dict[str, nn.Module],
        infos: dict[str, dict[str, Any]],
        output_dir: Path,
        handlers: Sequence[Any] | None = None,
    ) -> AuditEngine:
        """Returns an audit of another cohort with other networks, against the same real images and as this one."""
        seed, cohort_preprocessing, squeezenet_file, changed, device = self._settings
        return AuditEngine(
            cohort,
            self.data,
            networks,
            infos,
            output_dir,
            seed,
            cohort_preprocessing,
            squeezenet_file,
            changed,
            device,
            handlers,
        )

    def _check_output_dir(self) -> None:
        earlier = self.output_dir / "results.json"
        if not os.path.lexists(earlier):
            return
        try:
            known = json.loads(earlier.read_bytes())["audit_id"]
        except (OSError, ValueError, KeyError, TypeError):
            known = None
        if known != self.audit_id:
            raise DataError(
                f"output_dir {self.output_dir} holds the results of another audit: of other images, or with other "
                "options, networks or real images. It is not overwritten: name another output_dir."
            )

    def _proof(self) -> dict[str, Any]:
        """Returns how well each network was shown to recognise patients in other images; empty if it was not."""
        return {name: info.get("scores", {}).get("other_images", {}) for name, info in self.infos.items()}

    def _conclude(self) -> Tensors:
        names = self.data.class_names
        found = assess(self.distances, self.real.own, self.cohort.labels, names, self.seed, self._transformed())
        identical = identical_images(self.pixels, self.real.sides)
        copies = {role: int(is_copy.sum()) for role, is_copy in identical.items()}
        rules = {
            "identical": torch.stack(list(identical.values())).any(dim=0),
            "transformed": found.transformed.is_copy,
            "single image": found.single.flagged,
        }
        self.copies = torch.stack(list(rules.values())).any(dim=0)
        self.verdict = verdict_of(found, copies, len(self.pixels))
        self.results = self._content(found, copies, self.verdict)
        if self.deep:
            self.results["deep"] = self.deep.content()
            self.deep.write_private(private_folder(self.output_dir / "private"))
        write_private(self.output_dir / "private", self.distances, self.cohort, found.single, rules)
        write_json(self.output_dir / "results.json", self.results)
        write_report(self.output_dir / "report.html", self.results)
        write_text(self.output_dir / "tables.md", markdown_tables(self.results))
        self.state.metrics.update(_metrics(found, self.verdict))
        return {}

    def _transformed(self) -> TransformedCopies:
        sides = self.real.sides
        forms = [{role: side.pixels for role, side in sides.items()}]
        cohort, plain = self.pixels, replace(self.data.modality, preprocessing="plain")

        def untreated(records: Sequence[Record], what: str) -> torch.Tensor:
            return read_pixels([record.image for record in records], plain, self.data.resolution, what)

        if self.data.modality.preprocessing != plain.preprocessing:
            forms.append({role: untreated(side.records, f"{role}, untreated") for role, side in sides.items()})
        if self.preprocessing != plain.preprocessing:
            cohort = untreated(self.cohort.records, "the cohort, untreated")
        real = [(pixels["train"], torch.cat([pixels["val"], pixels["test"]])) for pixels in forms]
        return find_transformed_copies(cohort, real)

    def _content(self, found: Assessment, copies: dict[str, int], verdict: Verdict) -> dict[str, Any]:
        labels = self.cohort.labels
        names, own = self.data.class_names, {name: info["sha256"] for name, info in self.infos.items()}
        return {
            "format": FORMAT,
            "audit_id": self.audit_id,
            "verdict": {"exit_code": verdict.code, "title": verdict.title, "reasons": list(verdict.reasons)},
            "controls": [control.content() for control in found.controls],
            "not_found": [
                control.title
                for control in found.controls
                if control.key.startswith(("hard, ", "planted, ")) and control.estimate.value < RELIABLE
            ],
            "reidentification": self._proof(),
            "privacy": _rows(with_proof(PRIVACY, self.infos[VERIFIER]), found.figures),
            "fidelity": _rows(FIDELITY, found.figures),
            "per_class": {name: _rows(MEASURES, figures) for name, figures in found.per_class.items()},
            "placebo": _placebo_rows(found, with_proof(MEASURES, self.infos[VERIFIER])),
            "single_images": _single_images(found),
            "pixel_copies": copies,
            "copies_in_other_orientations": found.transformed.copies,
            "orientation": found.transformed.orientation or UPRIGHT[0],
            "farthest_change": {"name": found.farthest[0], "kid": rounded(found.farthest[1])},
            "correlation_quantiles": {name: [round(v, 3) for v in values] for name, values in found.quantiles.items()},
            "threshold": round(float(found.threshold), 3),
            "cohort": {
                "images": len(self.pixels),
                "sha256": self.cohort.sha256,
                "images_sha256": self.cohort.images_sha256,
                "releases": [
                    {"images": n, "sha256": sha256, "images_sha256": images}
                    for _, n, sha256, images in self.cohort.releases
                ],
                "labels": None
                if labels is None
                else {name: int((labels == label).sum()) for label, name in enumerate(names)},
                "sizes": self.cohort.sides,
                "preprocessing_applied_here": self.preprocessing,
                "settled": self.treatment,
                "manifest_holds": self.cohort.holds,
                "not_judged": list(self.cohort.not_judged),
                "filtered": [
                    {**entry, "by_these_networks": entry["networks"] == own} for entry in self.cohort.filtered
                ],
            },
            **self.real.content(),
            "networks": {
                name: {"sha256": info["sha256"], "trained_on_images": len(info["seen"])}
                for name, info in self.infos.items()
            },
            "features": FEATURES,
            "lpips": LPIPS_TRUNK,
            "seed": self.seed,
            **self.changed,
        }


def _placebo_rows(found: Assessment, measures: Mapping[str, Measure]) -> list[dict[str, Any]]:
    return [
        {
            "key": key,
            **dataclasses.asdict(measures[key]),
            "members": value.members.content(),
            "placebo": value.placebo.content(),
            "difference": value.difference.content(),
        }
        for key, value in found.placebo.items()
    ]


def _single_images(found: Assessment) -> dict[str, Any]:
    return {
        "flagged": int(found.single.flagged.sum()),
        "false_alarm_rate": FALSE_ALARMS,
        "bars": {name: rounded(bar.value) for name, bar in found.single.bars.items()},
        "largest_shifts": {
            name: rounded(max(bar.high - bar.value, bar.value - bar.low)) for name, bar in found.single.bars.items()
        },
        "flagged_without_any_one_patient": [found.single.fewest, found.single.most],
        "odd_held_out_patients": found.single.n_odd,
        "by_detector": {name: int(above.sum()) for name, above in found.single.by_detector.items()},
    }


def _rows(measures: dict[str, Measure], figures: Estimates) -> list[dict[str, Any]]:
    return [
        {
            "key": key,
            **dataclasses.asdict(measure),
            "figures": {column: value.content() for column, value in figures[key].items()},
        }
        for key, measure in measures.items()
        if key in figures
    ]


def _metrics(found: Assessment, verdict: Verdict) -> dict[str, float]:
    """Returns the metrics for MLflow, named as in results.json."""
    metrics = {"exit_code": float(verdict.code), "images_flagged": float(found.single.flagged.sum())}
    for key, figures in found.figures.items():
        for column, value in figures.items():
            if not value.withheld:
                metrics[f"{key}/{column}"] = value.value
    for control in found.controls:
        name = "".join(letter if letter.isalnum() or letter in "_-. " else " " for letter in control.key)
        if not control.estimate.withheld:
            metrics[f"control/{name}"] = control.estimate.value
    return metrics
