# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Quality of the points of walks, measured by guides, gate and audit networks, with intervals over paths."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch
from scipy.stats import spearmanr
from torch import Tensor

from bundle.auditing.resampling import DRAWS, Estimate, bootstrap, estimate, mean, patient_draws, share
from bundle.data import ImageData
from bundle.data.dataset import IDENTITY_SPLITS
from bundle.evaluation.walkers import Walk, Walker
from bundle.figures import from_uint8
from bundle.latent.prior import LatentPrior
from bundle.markup import three_digits
from bundle.metrics.copies import copy_threshold
from bundle.metrics.lpips import lpips_model, nearest
from bundle.metrics.recognition import predict
from bundle.networks.embeddings import ContrastiveEmbedding
from bundle.walk.guides import ImageGuides, LatentGuides
from bundle.walk.objective import Objective, identity_divergence

__all__ = ["MEASURES", "ReferenceImages", "difference", "path_figure", "quality", "quality_table", "student_table"]


class ReferenceImages:
    """Compares images with the real images that a generator was trained on.

    Args:
        data: real images.
        squeezenet_file: file of the SqueezeNet 1.1 weights, for LPIPS; None for those of torchvision.
        embedding: embedding network of the audit, which detects copies; None to omit copies.
    """

    def __init__(self, data: ImageData, squeezenet_file: str | None, embedding: ContrastiveEmbedding | None) -> None:
        self.reals = data.tensors(IDENTITY_SPLITS)[0]
        self.distance = lpips_model(squeezenet_file)
        self.embedding = embedding
        if embedding is not None:
            self.gallery = predict(embedding, self.reals)
            held_out = predict(embedding, data.tensors("val")[0])
            self.threshold = copy_threshold(embedding.nearest(held_out, self.gallery)[0])

    def measure(self, images: Tensor) -> dict[str, Tensor]:
        """Returns LPIPS to the ``nearest`` real image and whether an image is a ``copy``, [M] for [M, C, H, W]."""
        found = {"nearest": nearest(images, self.reals, self.distance)}
        if self.embedding is not None:
            found["copy"] = self.embedding.nearest(predict(self.embedding, images), self.gallery)[0] > self.threshold
        return found


@torch.no_grad()
def quality(
    walker: Walker, guides: ImageGuides, prior: LatentPrior, objective: Objective, real_images: ReferenceImages | None
) -> dict[str, Tensor]:
    """Measures the quality of the inner points of walks.

    Args:
        walker: walker that has run.
        guides: phi_id and phi_class, in fp32 and without distillation.
        prior: prior of the generator's latent codes.
        objective: objective by which all walks are measured, also those that minimised another one.
        real_images: real images for distances and copies; None to omit these.

    Returns:
        Measures [P, N - 2] of the inner points of all paths, sorted by class; ``objective`` and ``pair``, the number of
        the pair of end points, are [P].
    """
    values: dict[str, list[Tensor]] = {}

    def add(name: str, value: Tensor) -> None:
        values.setdefault(name, []).append(value.float().cpu())

    shown: list[Tensor] = []
    for label, (paths, drawn, verdicts) in enumerate(
        zip(walker.judged.w, walker.judged.pixels, walker.judged.verdicts, strict=True)
    ):
        for w, pixels, verdict in zip(paths, drawn, verdicts, strict=True):
            labels = torch.tensor([label])
            images = from_uint8(pixels)[1:-1]
            shown.append(images)
            identity, classes, realism = (values.unsqueeze(0) for values in guides(w[1:-1]))
            add("identity", identity_divergence(identity)[0])
            terms = objective(w.unsqueeze(0), identity, classes, realism, labels, prior(w[None, 1:-1], labels))
            add("objective", terms["loss"][0])
            gate = walker.gate
            add("gate_identity", gate.gate_identity(images).softmax(dim=1).amax(dim=1))
            add("recognised", verdict.recognised[1:-1])
            add("labelled", ~verdict.mislabelled[1:-1])
            add("passed", verdict.passed[1:-1])
            if isinstance(walker.guides, LatentGuides):
                promised, promised_class, _ = walker.guides(w[1:-1])
                likely = promised.softmax(dim=1).amax(dim=1) <= gate.threshold
                add("accepted", likely & (promised_class.argmax(dim=1) == label))
                add("promised", identity_divergence(promised))
    measured = {name: torch.stack(parts) for name, parts in values.items()}
    if real_images is not None:
        for name, value in real_images.measure(torch.cat(shown)).items():
            measured[name] = value.float().view(len(shown), -1)
    classes = walker.models.generator.num_classes
    pairs = [pair * classes + label for label, numbers in enumerate(walker.judged.pairs) for pair in numbers]
    return {"pair": torch.tensor(pairs), **measured}


#: Columns of the table of quality: name of the measure, title, and whether it is a share.
MEASURES: tuple[tuple[str, str, bool], ...] = (
    ("objective", "objective, real guides", False),
    ("identity", "identity KL, real phi_id", False),
    ("gate_identity", "gate_identity's highest probability", False),
    ("recognised", "recognised by the gate", True),
    ("labelled", "label kept, by the gate", True),
    ("passed", "released", True),
    ("nearest", "LPIPS to the nearest real image", False),
    ("copy", "copies, by the audit", True),
)


def path_figure(values: Tensor, is_share: bool) -> Estimate:
    """Estimates the mean of values [P] or [P, n], with the interval from bootstrap draws of paths."""
    paths = torch.arange(len(values)).repeat_interleave(values[0].numel())
    draws = patient_draws(paths, DRAWS, seed=0)
    flat = values.flatten()
    return share(flat.bool(), draws) if is_share else estimate(mean(flat), bootstrap(flat, draws, mean), len(flat))


def difference(first: Tensor, second: Tensor) -> Estimate:
    """Estimates the mean over paths of first minus second, both [P] or [P, n] and of the same pairs of end points."""
    per_path = (first - second).flatten(1).mean(dim=1) if first.ndim > 1 else first - second
    return path_figure(per_path, is_share=False)


def _text(value: Estimate, is_share: bool) -> str:
    factor, unit = (100.0, " %") if is_share else (1.0, "")
    middle, low, high = (three_digits(factor * number) for number in (value.value, value.low, value.high))
    return f"{middle}{unit} [{low}, {high}]"


def quality_table(measured: dict[str, dict[str, Tensor]], walks: dict[str, Walk]) -> list[tuple[str, ...]]:
    """Returns the table of quality of each walk and of differences from the published algorithm on common pairs."""
    chosen = [measure for measure in MEASURES if measure[0] in next(iter(measured.values()))]
    rows = [("walk", *(title for _, title, _ in chosen))]
    for name, values in measured.items():
        rows.append(
            (walks[name].title, *(_text(path_figure(values[key], shared), shared) for key, _, shared in chosen))
        )
    first = "published"
    for name, values in measured.items():
        if name in ("linear", first):
            continue
        common = [index for index in measured[first]["pair"].tolist() if index in values["pair"].tolist()]
        places = [[values_["pair"].tolist().index(index) for index in common] for values_ in (values, measured[first])]
        row = [f"{walks[name].title} less {walks[first].title}, {len(common)} common pairs"]
        for key, _, shared in chosen:
            both = [part[key][place] for part, place in zip((values, measured[first]), places, strict=True)]
            row.append(_text(difference(both[0], both[1]), shared))
        rows.append(tuple(row))
    return rows


def student_table(latent: dict[str, Tensor], trials: Sequence[dict[str, float]]) -> str:
    """Describes in words how well the latent guides (students) agree with the guides they were distilled from.

    Args:
        latent: quality of the walk that used the latent guides, from `quality`.
        trials: results of `bundle.walk.trajectories.agreement` for at least two seeds.
    """
    accepted = latent["accepted"].bool()
    draws = patient_draws(
        torch.arange(len(accepted)).repeat_interleave(accepted.shape[1])[accepted.flatten()], DRAWS, 0
    )
    passed = share(latent["passed"].bool().flatten()[accepted.flatten()], draws)
    correlation = spearmanr(latent["identity"].flatten(), latent["promised"].flatten()).statistic
    return (
        f"Of {int(accepted.sum())} inner points that the students accept, {_text(passed, True)} pass the gate. Where "
        f"the walks end, the students promise an identity KL of {float(latent['promised'].mean()):.3g} and the guide "
        f"says {float(latent['identity'].mean()):.3g} (rank correlation {correlation:.2f}). Over whole trajectories, "
        f"the rank correlation of student and guide is {_spread(trials, 'rank_correlation')} for the identity and "
        f"{_spread(trials, 'rank_correlation_class')} for the class (mean +- standard deviation, {len(trials)} seeds)."
    )


def _spread(trials: Sequence[dict[str, float]], key: str) -> str:
    values = [trial[key] for trial in trials]
    return f"{statistics.mean(values):.3f} +- {statistics.stdev(values):.3f}"
