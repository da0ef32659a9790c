# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""White-box inversion: how well the generator can be made to reproduce its members, against never-seen images.

Sources: Abdal et al., "Image2StyleGAN", arXiv 1904.03189 (optimisation of w); Chen et al., arXiv 1909.03935, section
4.3 (the reconstruction error as an attack on membership).
"""

from __future__ import annotations

import torch
from torch import Tensor

from bundle.auditing.controls import Control
from bundle.auditing.deep.attack import Attack, Row, roc_estimates, roc_rows
from bundle.auditing.deep.scores import smaller
from bundle.latent.reconstruction import descend, image_errors, reproduce
from bundle.metrics.lpips import embed, lpips_model, pairwise
from bundle.networks.sampling import fixed_latents
from bundle.networks.stylegan2 import Generator
from bundle.precision import full_fp32
from bundle.steps import Tensors

__all__ = ["QUESTION", "TITLE", "choose", "inversion_attack", "invert"]

# Latents of each class among which the starts are sought, and the images that are optimised at a time.
DRAWN, BATCH = 128, 16
# Adam's learning rate, in standard deviations of w, and the weight of the pull towards the mean of w.
RATE, PULL = 0.1, 0.001

TITLE = "White-box inversion"
QUESTION = (
    "Who holds the generator's weights searches for the latent w whose image is nearest to a patient's. Images that "
    "were trained on should not be reconstructed better than images that were not. The calibrated error is relative "
    "to the distance of the image to the nearest image of another patient, since plain images are easy for any "
    "generator. A failure of this search says little: another optimiser, or all layers' own latents, may find more."
)


def choose(labels: dict[str, Tensor], n: int, seed: int) -> dict[str, Tensor]:
    """Chooses equally many images of every class in every role.

    Args:
        labels: labels [N] of the images of each role.
        n: largest number of images in a role.
        seed: seed of the choice.

    Returns:
        Indices [n or fewer] by role.
    """
    random = torch.Generator().manual_seed(seed)
    classes = torch.cat(list(labels.values())).unique()
    shuffled = {role: torch.randperm(len(values), generator=random) for role, values in labels.items()}
    reference = labels["test"]
    index: dict[str, list[Tensor]] = {role: [] for role in labels}
    for label in classes:
        wanted = round(n * float((reference == label).double().mean()))
        mine = {role: order[labels[role][order] == label] for role, order in shuffled.items()}
        size = min(wanted, *(len(values) for values in mine.values()))
        for role, values in mine.items():
            index[role].append(values[:size])
    return {role: torch.cat(parts) for role, parts in index.items()}


@full_fp32()
def invert(
    generator: Generator,
    images: Tensor,
    labels: Tensor,
    steps: int,
    starts: int,
    seed: int,
    squeezenet_file: str | None = None,
) -> Tensors:
    """Reconstructs images by optimising w with Adam.

    The loss is LPIPS plus the mean squared error of the pixels plus a pull to W: the mean squared distance of w to its
    mean, in standard deviations. Each image starts from the latents, of those drawn for its class, whose images are the
    nearest by LPIPS; the best result counts.

    Args:
        generator: generator, on any device; its images are reduced to the resolution of ``images``.
        images: images [N, C, H, W] in [-1, 1].
        labels: labels [N].
        steps: steps of Adam.
        starts: starts for each image.
        seed: seed of the drawn latents.
        squeezenet_file: file of the SqueezeNet 1.1 weights; None for those of torchvision.

    Returns:
        ``lpips`` [N] and ``pixels`` [N], the root mean squared error, of the best reconstruction of each image.
    """
    if not len(images):  # a class may be missing from a role
        return {"lpips": torch.empty(0), "pixels": torch.empty(0)}
    device, side = next(generator.parameters()).device, images.shape[-1]
    model = lpips_model(squeezenet_file).to(device)
    z, drawn_labels = fixed_latents(DRAWN * generator.num_classes, generator.z_dim, generator.num_classes, seed)
    with torch.no_grad():
        w = generator.mapping(z.to(device), drawn_labels.to(device))
        drawn = torch.cat([smaller(generator.synthesis(part), side).cpu() for part in w.split(BATCH)])
    distances = pairwise(images, drawn, model, device=device)
    distances = distances.masked_fill(labels[:, None] != drawn_labels[None], torch.inf)
    first = distances.topk(min(starts, DRAWN), dim=1, largest=False).indices
    spread = torch.stack([w[drawn_labels == label].std(dim=0) for label in range(generator.num_classes)])
    centre = torch.stack([w[drawn_labels == label].mean(dim=0) for label in range(generator.num_classes)])
    found: dict[str, list[Tensor]] = {"lpips": [], "pixels": []}
    for block in torch.arange(len(images)).split(BATCH):
        mine = block.repeat_interleave(first.shape[1])
        mean, scale = centre[labels[mine]], spread[labels[mine]].clamp_min(1e-6)
        start = (w[first[block].flatten()] - mean) / scale
        result = _descend(generator, model, images[mine].to(device), mean, scale, start, steps)
        total = (result["lpips"] + result["pixels"].square()).view(len(block), -1)
        best = total.argmin(dim=1, keepdim=True)
        for name, values in result.items():
            found[name].append(values.view(len(block), -1).gather(1, best)[:, 0].cpu())
    return {name: torch.cat(parts) for name, parts in found.items()}


def _descend(
    generator: Generator, model: torch.nn.Module, goal: Tensor, mean: Tensor, scale: Tensor, start: Tensor, steps: int
) -> Tensors:
    with torch.no_grad():
        wanted = embed(goal, model)

    def errors(u: Tensor) -> tuple[Tensor, Tensor]:
        image = smaller(reproduce(generator, mean + scale * u), goal.shape[-1])
        return image_errors(image, goal, wanted, model)

    def loss(u: Tensor) -> Tensor:
        perceived, squared = errors(u)
        return perceived + squared + PULL * u.square().mean(dim=1)

    u = descend(loss, start, steps, RATE)
    with torch.no_grad():
        perceived, squared = errors(u)
    return {"lpips": perceived, "pixels": squared.sqrt()}


def inversion_attack(
    errors: dict[str, Tensors], nearest: dict[str, Tensor], patients: dict[str, Tensor], seed: int
) -> Attack:
    """Reports the attack, with validation images in the place of members as its control.

    Args:
        errors: result of `invert` for the roles train (members), test and val (never seen), [N] each.
        nearest: distance [N] of each image to the nearest image of another patient.
        patients: patient number [N] of each image.
        seed: seed of the bootstrap draws.
    """

    def compare(first: str, name: str) -> tuple[Tensor, Tensor, Tensor]:
        scores = []
        for role in (first, "test"):
            error = errors[role]["lpips"].double().clamp_min(1e-9)
            relative = nearest[role].double().clamp_min(1e-9).log() - error.log()
            scores.append({"error": -error, "pixels": -errors[role]["pixels"].double(), "calibrated": relative}[name])
        member = torch.cat([torch.ones(len(scores[0])), torch.zeros(len(scores[1]))]).bool()
        whose = torch.cat([patients[first], patients["test"] + int(patients[first].max()) + 1])
        return torch.cat(scores)[None], member[None], whose

    titles = {
        "error": "reconstruction error, LPIPS",
        "pixels": "reconstruction error, pixels",
        "calibrated": "calibrated reconstruction error",
    }
    rows: list[Row] = []
    controls = []
    for name, title in titles.items():
        rows += roc_rows(name, title, roc_estimates(*compare("train", name), seed))
        auc = roc_estimates(*compare("val", name), seed + 1)["auc"]
        passed = None if auc.withheld else auc.low <= 0.5 <= auc.high
        words = f"validation against test images, both never seen: AUC, {title}"
        controls.append(Control(f"val_{name}", words, auc, "compatible with 0.5", passed))
    return Attack("inversion", TITLE, QUESTION, tuple(rows), tuple(controls))
