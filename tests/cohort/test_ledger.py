# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bundle.cohort.ledger import PATIENCE, CohortError, WalkLedger

# Points of a path, of which all but the ends can be released.
N = 6
SETTINGS: dict[str, Any] = {"seed": 0, "classes": [0, 1], "models": {"generator": "ab"}}


def ledger(
    tmp_path: Path,
    quotas: dict[int, int] | None = None,
    apart: float = 0.0,
    n_pairs: dict[int, int] | None = None,
    **settings: Any,
) -> WalkLedger:
    made = WalkLedger(
        tmp_path / "private" / "walk",
        {**SETTINGS, **settings},
        {0: 5, 1: 3} if quotas is None else quotas,
        N,
        2,
        apart=[apart, apart],
        n_pairs=n_pairs,
    )
    made.open()
    return made


def record(passed: list[int], value: int = 0) -> dict[str, Tensor]:
    """A pair whose inner images are grey of the given value plus their number, which is their only feature as well."""
    mask = torch.tensor([0, *passed, 0], dtype=torch.bool)
    image = (torch.arange(N) - 1 + value).byte().view(N, 1, 1).expand(N, 2, 2).clone()
    other = torch.zeros(N, dtype=torch.bool)
    decisions = {"passed": mask, "recognised": ~mask, "mislabelled": other, "unrealistic": other}
    return {"image": image, "features": image[:, 0, :1].half(), **decisions}


def walk_on(book: WalkLedger, passed: list[int], every: int = 1) -> list[tuple[int, int]]:
    """Walks until there is enough; one path of so many lets these points pass, the others none."""
    blocks = []
    while (wanted := book.next_block()) is not None:
        blocks.append(wanted)
        label, block = wanted
        for index in filter(lambda index: book.takes(label, index), (2 * block, 2 * block + 1)):
            book.add(label, index, record(passed if index % every == 0 else [0] * (N - 2), value=10 * index))
    return blocks


def test_blocks_are_asked_for_until_every_class_has_its_images(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    # Two of each path pass, four of a block: two blocks for five images, one for three. A block is asked for as soon as
    # it is certain that it is needed.
    assert walk_on(book, [1, 0, 0, 1]) == [(0, 0), (1, 0), (0, 1)]
    assert book.next_block() is None
    assert book.done() == (8, 8)


def test_images_are_those_that_passed_evenly_from_all_pairs(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    walk_on(book, [1, 0, 1, 1])
    # Of a single image, the one in the middle of those that passed.
    assert [int(image[0, 0]) for image in book.images(0)] == [0, 2, 3, 10, 13]
    assert [int(image[0, 0]) for image in book.images(1)] == [0, 3, 12]


def test_counts_are_of_the_inner_points_of_the_blocks_that_the_images_come_from(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    walk_on(book, [1, 0, 0, 1])
    assert book.counts(0) == {
        "judged": 16,
        "passed": 8,
        "recognised": 8,
        "mislabelled": 0,
        "unrealistic": 0,
        "near_duplicates": 0,
    }
    assert book.counts(1) == {
        "judged": 8,
        "passed": 4,
        "recognised": 4,
        "mislabelled": 0,
        "unrealistic": 0,
        "near_duplicates": 0,
    }


def test_near_duplicates_on_any_path_are_replaced(tmp_path: Path) -> None:
    book = ledger(tmp_path, {0: 7}, apart=0.5)
    values = iter([0, 2, 0, 10])  # the third path repeats the first, and the second half of it
    while (wanted := book.next_block()) is not None:
        for index in (2 * wanted[1], 2 * wanted[1] + 1):
            book.add(0, index, record([1, 1, 1, 1], value=next(values)))
    shown = [int(image[0, 0]) for image in book.images(0)]
    assert len(set(shown)) == len(shown) == 7
    assert set(shown) < {0, 1, 2, 3, 4, 5, 10, 11, 12, 13}
    assert book.counts(0)["near_duplicates"] == 6
    again = ledger(tmp_path, {0: 7}, apart=0.5)
    assert again.next_block() is None
    assert [int(image[0, 0]) for image in again.images(0)] == shown


def test_a_gap_among_the_pairs_changes_no_choice(tmp_path: Path) -> None:
    book = ledger(tmp_path, {0: 3}, apart=0.5)
    walk_on(book, [1, 1, 0, 0])
    shown = [int(image[0, 0]) for image in book.images(0)]
    (tmp_path / "private" / "walk" / "pair_0_000000.pt").unlink()
    again = ledger(tmp_path, {0: 3}, apart=0.5)
    assert walk_on(again, [1, 1, 0, 0]) == [(0, 0)]
    assert [int(image[0, 0]) for image in again.images(0)] == shown


def test_broken_off_run_is_taken_up_where_it_was(tmp_path: Path) -> None:
    first = ledger(tmp_path)
    first.add(0, 0, record([1, 1, 0, 0]))
    assert ledger(tmp_path).next_block() == (0, 0)  # a block is walked as a whole
    first.add(0, 1, record([1, 1, 1, 0]))
    second = ledger(tmp_path)
    assert second.next_block() == (1, 0)
    assert second.done() == (5, 8)
    assert [int(image[0, 0]) for image in second.images(0)] == [0, 1, 0, 1, 2]


def test_asking_for_more_changes_no_block(tmp_path: Path) -> None:
    few, many = ledger(tmp_path / "few", {0: 3}), ledger(tmp_path / "many", {0: 20})
    assert walk_on(many, [1, 1, 0, 0])[: len(walk_on(few, [1, 1, 0, 0]))] == [(0, 0)]
    few_images, many_images = ({int(x[0, 0]) for x in book.images(0)} for book in (few, many))
    assert few_images < many_images


def test_class_of_no_images(tmp_path: Path) -> None:
    book = ledger(tmp_path, {0: 0, 1: 1})
    assert book.next_block() == (1, 0)
    assert list(book.images(0)) == []


@pytest.mark.parametrize(
    ("change", "name"), [({"seed": 1}, "seed"), ({"models": {"generator": "cd"}}, "models"), ({"new": 1}, "new")]
)
def test_folder_of_another_run_is_refused(tmp_path: Path, change: dict[str, Any], name: str) -> None:
    ledger(tmp_path).add(0, 0, record([1, 1, 1, 1]))
    with pytest.raises(
        CohortError, match=rf"other options \({name}\), .*not overwritten.*another output_dir"
    ) as caught:
        ledger(tmp_path, **change)
    assert str(caught.value).startswith(str(tmp_path))
    kept = json.loads((tmp_path / "private" / "walk" / "settings.json").read_text())
    assert kept == {**SETTINGS, "settings_sha256": kept["settings_sha256"]}
    assert len(list(tmp_path.rglob("pair_*.pt"))) == 1


def test_settings_are_compared_as_json_keeps_them(tmp_path: Path) -> None:
    ledger(tmp_path, shape=(1, 2))
    ledger(tmp_path, shape=(1, 2))


def test_gate_that_lets_nothing_pass_ends_the_walk(tmp_path: Path) -> None:
    book = ledger(tmp_path, {0: 20})  # three blocks of eight if every point passed
    expected = r"After 60 paths only 0 of 20 images of class 0 .*of 240 points 0 passed the gate"
    with pytest.raises(CohortError, match=expected):
        walk_on(book, [0, 0, 0, 0])
    assert len(list(tmp_path.rglob("pair_*.pt"))) == 3 * PATIENCE * 2


def test_a_gate_that_lets_little_pass_only_takes_longer(tmp_path: Path) -> None:
    book = ledger(tmp_path, {0: 12})  # two blocks of eight if every point passed
    assert len(walk_on(book, [1, 1, 1, 1], every=20)) == 2 * PATIENCE + 1
    assert book.done() == (12, 12)


def test_pairs_that_run_out_suffice_where_enough_pass(tmp_path: Path) -> None:
    """Three pairs in blocks of two: the last block has only one that counts."""
    book = ledger(tmp_path, {0: 12, 1: 3}, n_pairs={0: 3, 1: 1})
    assert walk_on(book, [1, 1, 1, 1]) == [(0, 0), (0, 1), (1, 0)]
    assert [book.takes(0, index) for index in range(4)] == [True, True, True, False]
    assert book.counts(0)["judged"] == 12
    assert len(list(book.images(0))) == 12
    assert len(list(book.images(1))) == 3
    assert len(list(tmp_path.rglob("pair_*.pt"))) == 4
    again = ledger(tmp_path, {0: 12, 1: 3}, n_pairs={0: 3, 1: 1})
    assert again.next_block() is None
    assert len(list(again.images(0))) == 12


def test_pairs_that_run_out_before_there_are_enough_are_told_with_what_can_be_made(tmp_path: Path) -> None:
    message = (
        r"All 3 paths between the centroids of normal are walked, and 6 of 7 images can be released: 6 points passed "
        r"the gate, and 0 of these are near-duplicates of others\. Ask for at most --n_images 6, .*a smaller --k"
    )
    for _ in range(2):
        book = ledger(tmp_path, {0: 7}, n_pairs={0: 3}, classes=["normal"])
        with pytest.raises(CohortError, match=message):
            walk_on(book, [1, 0, 0, 1])


def test_only_tensors_are_kept_and_no_half_file(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    book.add(1, 3, record([1, 0, 0, 0]))
    files = sorted(path.name for path in (tmp_path / "private" / "walk").iterdir())
    assert files == ["pair_1_000003.pt", "settings.json"]
    kept = torch.load(tmp_path / "private" / "walk" / "pair_1_000003.pt", weights_only=True)
    assert kept["passed"].tolist() == [False, True, False, False, False, False]


def test_processes_are_dealt_whole_blocks_and_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes, one after the other where they would wait for each other."""
    rank = 0
    monkeypatch.setattr("ignite.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("ignite.distributed.get_rank", lambda: rank)
    books = [ledger(tmp_path, {0: 20}) for _ in range(2)]  # at least three blocks of 8
    dealt: list[list[tuple[int, int]]] = [[], []]
    for rank, book in enumerate(books):
        first = book.next_block()
        assert first is not None
        dealt[rank].append(first)
        dealt[rank] += book._dealt
        book._dealt.clear()
    assert dealt == [[(0, 0), (0, 2)], [(0, 1)]]
    for rank, blocks in enumerate(dealt):
        for label, block in blocks:
            for index in (2 * block, 2 * block + 1):
                books[rank].add(label, index, record([1, 1, 1, 0], value=10 * index))
    # 18 of 24 have passed: one more block is due, for the first of them.
    rank = 0
    assert books[0].next_block() == (0, 3)
    for index in (6, 7):
        books[0].add(0, index, record([1, 1, 1, 0], value=10 * index))
    rank = 1
    assert books[1].next_block() is None
    alone = ledger(tmp_path / "alone", {0: 20})
    monkeypatch.setattr("ignite.distributed.get_world_size", lambda: 1)
    rank = 0
    walk_on(alone, [1, 1, 1, 0])
    assert [int(image[0, 0]) for image in books[1].images(0)] == [int(image[0, 0]) for image in alone.images(0)]


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def changed(**values: Any) -> Callable[[Path], None]:
    """Writes other tensors into a file and leaves its seal."""

    def change(path: Path) -> None:
        torch.save({**torch.load(path, weights_only=True), **values}, path)

    return change


def of_another_pair(path: Path) -> None:
    shutil.copyfile(path.with_name("pair_0_000000.pt"), path)


def of_another_run(path: Path) -> None:
    other = ledger(path.parents[3] / "other", seed=1)
    other.add(0, 1, record([1, 1, 1, 1]))
    shutil.copyfile(other.folder / path.name, path)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "spoil",
    [
        half,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no tensors"),
        lambda path: torch.save([torch.zeros(2)], path),
        changed(image=torch.zeros(N + 1, 2, 2, dtype=torch.uint8)),
        changed(image=torch.zeros(N, 2, 2)),
        changed(passed=torch.ones(N)),
        changed(passed=torch.ones(N, dtype=torch.bool)),
        changed(w=torch.full((N, 3), float("nan"))),
        of_another_pair,
        of_another_run,
        pipe,
    ],
)
def test_damaged_or_foreign_pair_is_walked_anew_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None]
) -> None:
    first = ledger(tmp_path / "run")
    for index in (0, 1):
        first.add(0, index, record([1, 1, 0, 0]))
    path = first.folder / "pair_0_000001.pt"
    spoil(path)
    with caplog.at_level(logging.WARNING):
        second = ledger(tmp_path / "run")
    assert "pair_0_000001.pt" in caplog.text
    assert caplog.text.count("\n") == 1
    assert not os.path.lexists(path)
    assert second.next_block() == (0, 0)
    assert second.done() == (2, 8)


def test_file_that_the_run_would_not_name_so_is_no_pair(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = ledger(tmp_path)
    first.add(0, 0, record([1, 1, 0, 0]))
    names = ["pair_0_000000 (copy).pt", "pair_7_000000.pt", "pair_0_00000\uff11.pt", "pair_x.pt", "pair_00_000000.pt"]
    for name in names:
        shutil.copyfile(first.folder / "pair_0_000000.pt", first.folder / name)
    with caplog.at_level(logging.WARNING):
        assert ledger(tmp_path).done() == (2, 8)
    assert all(repr(name)[1:-1] in caplog.text for name in names)


def reseed(claim: Path) -> None:
    claim.write_text(claim.read_text().replace('"seed": 0', '"seed": 1'))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (Path.unlink, "is gone"),
        (reseed, "was edited"),
        (lambda claim: claim.write_bytes(b"{"), "is damaged"),
        (lambda claim: claim.write_bytes(b"[]"), "is damaged"),
        (lambda claim: claim.write_bytes(b"\xff"), "is damaged"),
        (lambda claim: claim.write_text(json.dumps(SETTINGS)), "is damaged or of another release"),
        (pipe, "is damaged"),
    ],
)
def test_pairs_that_nothing_vouches_for_are_not_adopted(
    tmp_path: Path, spoil: Callable[[Path], None], words: str
) -> None:
    first = ledger(tmp_path)
    first.add(0, 0, record([1, 1, 0, 0]))
    spoil(first.folder / "settings.json")
    with pytest.raises(CohortError, match=rf"settings\.json {words}.*Remove .*walk to walk them anew") as caught:
        ledger(tmp_path, seed=1)
    assert "\n" not in str(caught.value)
    assert (first.folder / "pair_0_000000.pt").exists()


def test_folder_that_goes_meanwhile_ends_the_walk(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    shutil.rmtree(book.folder)
    with pytest.raises(CohortError, match=r"was removed while .* run the same command again"):
        book.add(0, 0, record([1, 1, 0, 0]))
    assert not book.folder.exists()


def test_pair_that_changes_meanwhile_is_not_released(tmp_path: Path) -> None:
    book = ledger(tmp_path, {0: 1})
    walk_on(book, [1, 0, 0, 0])
    half(book.folder / "pair_0_000000.pt")
    with pytest.raises(CohortError, match=r"pair_0_000000\.pt was changed while it was in use: it is damaged"):
        list(book.images(0))


def test_plan_of_any_length_takes_little_memory(tmp_path: Path) -> None:
    book = ledger(tmp_path, {0: 2**63 - 1, 1: 2**63 - 1})
    assert book.next_block() == (0, 0)
    assert len(book._dealt) < 1000


def test_expected_images_are_of_the_class_that_is_walked(tmp_path: Path) -> None:
    book = ledger(tmp_path)  # 5 and 3 images, blocks of 8 points
    assert book.expected() == 0
    assert book.next_block() == (0, 0)
    assert book.expected() == 5
    for index in (0, 1):
        book.add(0, index, record([1, 0, 0, 0]))
    assert book.expected() == 2  # a sixth of the points passes
    assert book.next_block() == (1, 0)
    assert book.expected() == 2
    for index in (0, 1):
        book.add(1, index, record([1, 1, 1, 1]))
    assert (book.missing(0), book.missing(1)) == (3, 0)
