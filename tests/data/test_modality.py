# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from bundle.data import MODALITIES, DataError, Modality, get_modality


def test_the_preset_of_x_rays() -> None:
    preset = get_modality("xray")
    assert (preset.channels, preset.class_names) == (1, ("normal", "tuberculosis"))


def test_a_preset_is_handed_back() -> None:
    toy = Modality("toy", 3, ("a", "b"))
    assert get_modality(toy) is toy


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(DataError, match=r"'xrays'; did you mean 'xray'\?"):
        get_modality("xrays")


def test_lists_of_a_configuration_become_hashable() -> None:
    assert len({Modality("toy", 1, ["a", "b"]), Modality("toy", 1, ("a", "b"))}) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "label"),
    [("normal", 0), (" Normal ", 0), ("TB", 1), ("Tuberculosis", 1), ("1", 1), ("2", None), ("-1", None), ("", None)],
)
def test_labels_by_name_alias_and_number(text: str, label: int | None) -> None:
    assert MODALITIES["xray"].label_of(text) == label


@pytest.mark.parametrize(
    ("channels", "names", "aliases"), [(2, ("a",), ()), (1, (), ()), (1, ("a", "a"), ()), (1, ("a",), (("b", "c"),))]
)
def test_impossible_presets_are_refused(
    channels: int, names: tuple[str, ...], aliases: tuple[tuple[str, str], ...]
) -> None:
    with pytest.raises(ValueError, match="modality 'toy'"):
        Modality("toy", channels, names, aliases)


@pytest.mark.parametrize("levels", [(0.5,), (0.0, 0.5, 0.4), (-0.1, 1.0), (0.0, 1.1)])
def test_impossible_histograms_are_refused(levels: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="reference_histogram must rise"):
        Modality("toy", 1, ("a", "b"), reference_histogram=levels)


@pytest.mark.parametrize(
    ("preprocessing", "one"), [("plain", False), ("crop", False), ("histogram", True), ("crop_histogram", True)]
)
def test_has_one_histogram(preprocessing: str, one: bool) -> None:
    assert Modality("toy", 1, ("a",), preprocessing=preprocessing).has_one_histogram is one
