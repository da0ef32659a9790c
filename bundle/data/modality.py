# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Presets for the modalities: the settings that are specific to one kind of image."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bundle.class_names import class_names_problem
from bundle.data.errors import DataError

__all__ = ["MODALITIES", "Modality", "get_modality"]


@dataclass(frozen=True)
class Modality:
    """Settings of one kind of image; all code that depends on the kind of image reads them from here.

    Attributes:
        name: short name, used in file names and on the command line.
        channels: 1 (grey) or 3 (RGB).
        class_names: name of each label, in the order of the labels 0, 1, ...
        class_aliases: other names of the classes in public data sets, as pairs (alias, class name); compared without
            regard to case.
        ordered: whether the classes are grades of increasing severity. Quadratic weighted kappa, which penalises
            adjacent grades least, is then reported beside accuracy.
        pretrained: whether diagnostic classifiers start from ImageNet weights, which helps where signs are small and
            labelled images are few.
        class_epochs_share: epochs of the diagnostic classifiers, as a fraction of those of the identity guide.
        class_learning_rate_factor: learning rate of the diagnostic classifiers, as a multiple of that of the identity
            networks; well below 1 where they start from ImageNet weights.
        preprocessing: name of the intensity and border preprocessing, a key of
            :data:`bundle.data.transforms.PREPROCESSINGS`.
        reference_histogram: quantile function of the brightness, 0 (black) to 1 (white), of a typical image at equally
            spaced quantiles, darkest first; the preprocessings called "histogram" match every image to it.
        lambda_class: weight of L_class in the walk's objective; lower where diagnostic classifiers are often wrong.
        lambda_prior: weight of L_prior, which keeps walks close to the distribution of the generator's latents; higher
            where images degrade quickly outside of it.
        lambda_real: weight of L_real, which bends walks around images that look unlike real ones.
        stranger_quantile: share of the validation images in which the identity guide finds less of its patients than
            the walk's bar allows; lower keeps walks farther from patients, higher nearer to real images.
        has_fixed_classes: whether data sets must not add classes, for example because trained networks know only these.
    """

    name: str
    channels: int
    class_names: tuple[str, ...]
    class_aliases: tuple[tuple[str, str], ...] = ()
    ordered: bool = False
    pretrained: bool = False
    class_epochs_share: float = 0.125
    class_learning_rate_factor: float = 1.0
    preprocessing: str = "plain"
    reference_histogram: tuple[float, ...] = (0.0, 1.0)
    lambda_class: float = 5.0
    lambda_prior: float = 1.0
    lambda_real: float = 20.0
    stranger_quantile: float = 0.05
    has_fixed_classes: bool = False

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ValueError(f"modality {self.name!r}: channels is {self.channels}; use 1 (grey) or 3 (RGB)")
        # JSON configurations give lists, and a frozen preset must be hashable.
        object.__setattr__(self, "class_names", tuple(self.class_names))
        object.__setattr__(self, "class_aliases", tuple((alias, name) for alias, name in self.class_aliases))
        object.__setattr__(self, "reference_histogram", tuple(self.reference_histogram))
        levels = self.reference_histogram
        if len(levels) < 2 or list(levels) != sorted(levels) or levels[0] < 0.0 or levels[-1] > 1.0:
            raise ValueError(f"modality {self.name!r}: reference_histogram must rise within 0 and 1: {levels}")
        if problem := class_names_problem(self.class_names):
            raise ValueError(f"modality {self.name!r}: class_names: {problem}")
        unknown = [name for _, name in self.class_aliases if name not in self.class_names]
        if unknown:
            raise ValueError(f"modality {self.name!r}: class_aliases point to {unknown}, not in {self.class_names}")

    def __str__(self) -> str:
        """Returns the name, so that a preset and its name give the same text, for example in names of folders."""
        return self.name

    @property
    def has_one_histogram(self) -> bool:
        """Whether the preprocessing gives the same histogram to every image."""
        return "histogram" in self.preprocessing

    def label_of(self, text: str) -> int | None:
        """Returns the label of a class name, an alias or a number; None for any other text.

        Case is ignored, and spaces, hyphens and underscores are equivalent. A whole number may have decimals ("1.0"),
        as in tables with missing values.
        """
        names = {_words(alias): self.class_names.index(name) for alias, name in self.class_aliases}
        names |= {_words(name): label for label, name in enumerate(self.class_names)}
        if (label := names.get(_words(text))) is not None:
            return label
        number = re.fullmatch(r"(\d+)(?:\.0*)?", text.strip(), re.ASCII)
        return int(number[1]) if number and int(number[1]) < len(self.class_names) else None

    def with_classes(self, class_names: Sequence[str]) -> Modality:
        """Returns the preset with other classes, which become fixed; keeps the aliases of classes that remain."""
        aliases = tuple((alias, name) for alias, name in self.class_aliases if name in class_names)
        return replace(self, class_names=tuple(class_names), class_aliases=aliases, has_fixed_classes=True)


def _words(text: str) -> str:
    return " ".join(re.split(r"[\s_-]+", text.strip())).casefold()


MODALITIES: dict[str, Modality] = {
    "xray": Modality(
        name="xray",
        channels=1,
        class_names=("normal", "tuberculosis"),
        class_aliases=(("healthy", "normal"), ("tb", "tuberculosis")),
        preprocessing="crop_histogram",
        # Mean quantile function of 800 radiographs from four sources without their borders, scaled to [0, 1].
        reference_histogram=(
            *(0.0, 0.217, 0.284, 0.338, 0.388, 0.437, 0.487, 0.538),
            *(0.587, 0.635, 0.680, 0.721, 0.760, 0.799, 0.840, 0.882, 1.0),
        ),
    ),
    "fundus": Modality(
        name="fundus",
        channels=3,
        # Grades of diabetic retinopathy on the international scale (Wilkinson et al., Ophthalmology 110, 2003).
        class_names=("no_dr", "mild", "moderate", "severe", "proliferative"),
        class_aliases=(
            *((name, "no_dr") for name in ("healthy", "normal", "no retinopathy")),
            *((f"{grade} {disease}", grade) for grade in ("mild", "moderate", "severe") for disease in ("dr", "npdr")),
            *((name, "proliferative") for name in ("proliferate", "proliferate dr", "proliferative dr", "pdr")),
        ),
        ordered=True,
        pretrained=True,
        class_epochs_share=0.3,
        class_learning_rate_factor=0.15,
        preprocessing="retina",
        lambda_class=1.0,
        lambda_prior=10.0,
        lambda_real=40.0,
        stranger_quantile=0.5,
    ),
}


def get_modality(name: str | Modality) -> Modality:
    """Returns the preset called ``name``; a Modality is returned unchanged.

    Raises:
        DataError: there is no such preset; the message suggests the most similar name.
    """
    if isinstance(name, Modality):
        return name
    if name not in MODALITIES:
        near = difflib.get_close_matches(str(name), MODALITIES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise DataError(f"unknown modality {name!r}; {hint}the modalities are: {', '.join(sorted(MODALITIES))}")
    return MODALITIES[name]
