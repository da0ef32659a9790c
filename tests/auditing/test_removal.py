# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bundle.auditing.clearance import passed_audit
from bundle.auditing.engine import AuditEngine
from bundle.auditing.images import open_cohort
from bundle.auditing.removal import AUDIT_DIR, COHORT_DIR, audit_without_flagged, write_without
from bundle.auditing.verdict import COPIES, PASSED, UNUSABLE
from bundle.cohort.ledger import CohortError
from bundle.cohort.review_page import PAGE, has_page
from bundle.cohort.writer import read_labels, verify_cohort, write_cohort
from bundle.data import DataError, get_modality
from bundle.files import sha256_file
from tests.auditing.test_engine import Audit, strangers
from tests.auditing.test_engine import few_draws as few_draws
from tests.auditing.test_engine import new_audit as new_audit
from tests.hospital import CohortMaker, Networks, real_image

COPIED = (3, 40)


def images_with_copies() -> list[np.ndarray]:
    """50 strangers, of whom two are replaced: one by a training image, one by a training image upside down."""
    images = strangers(50)
    images[COPIED[0]], images[COPIED[1]] = real_image(20), np.rot90(real_image(30), 2)
    return images


@pytest.fixture
def retrained(networks: Networks) -> Any:
    """Stands in for the training of further networks; lists the seeds that were asked for."""
    seeds: list[int] = []

    def train(seed: int) -> Networks:
        seeds.append(seed)
        return networks[0], {name: {**info, "sha256": f"{seed}" * 64} for name, info in networks[1].items()}

    train.seeds = seeds  # type: ignore[attr-defined]
    return train


def after_run(engine: AuditEngine) -> AuditEngine:
    engine.run()
    assert engine.verdict is not None
    assert engine.verdict.code == COPIES
    return engine


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in folder.rglob("*") if path.is_file()}


def test_a_sealed_cohort_stays_sealed_and_says_what_was_removed(
    new_audit: Audit, retrained: Any, hospital: Path, tmp_path: Path
) -> None:
    folder, names = tmp_path / "sealed", ("normal", "tuberculosis")
    labelled = [
        (int(number >= 25), torch.from_numpy(image.copy())) for number, image in enumerate(images_with_copies())
    ]
    counts = {name: {"images": 25, "judged": 30, "recognised": 5, "mislabelled": 0, "unrealistic": 0} for name in names}
    manifest = {"configuration": {"n_images": 50}, "class_names": list(names), "gate": counts}
    write_cohort(folder, labelled, names, manifest, "# The old datasheet\n")
    before = contents(folder)
    first = after_run(new_audit(folder))
    second = audit_without_flagged(first, retrained, hospital)
    assert second is not None
    assert second.verdict is not None
    assert second.verdict.code == PASSED
    assert contents(folder) == before
    made = tmp_path / "audit" / COHORT_DIR
    written = verify_cohort(made)
    assert has_page(written, made.parent / PAGE)
    assert [entry["images"] for entry in written["gate"].values()] == [24, 24]
    (removal,) = written["filtered"]
    assert (removal["removed"], removal["images"]) == (2, 50)
    assert removal["cohort_sha256"] == first.cohort.sha256
    # Names do not tell which images are gone.
    assert [name for name, *_ in read_labels(made)][:24] == [f"images/normal_{i + 1:06d}.png" for i in range(24)]
    gone = {before[f"images/normal_{COPIED[0] + 1:06d}.png"], before[f"images/tuberculosis_{COPIED[1] - 24:06d}.png"]}
    pictures = {digest for name, digest in contents(made).items() if name.startswith("images/")}
    assert pictures == {digest for name, digest in before.items() if name.startswith("images/")} - gone
    datasheet = (made / "datasheet.md").read_text(encoding="utf-8")
    assert "removed 2 of 50 images" in datasheet
    assert "become a filter" in datasheet
    assert first.cohort.sha256 in datasheet
    assert "# The old datasheet" in datasheet
    report = (tmp_path / "audit" / AUDIT_DIR / "report.html").read_text(encoding="utf-8")
    assert "An audit removed 2 of 50 images before this one" in report
    assert "come\nfrom another training" in report
    assert retrained.seeds == [1]
    # What may be given away is the new cohort.
    assert passed_audit(made, written) == tmp_path / "audit" / AUDIT_DIR
    with pytest.raises(CohortError, match="does not clear the cohort: NOT TO BE RELEASED"):
        passed_audit(folder, verify_cohort(folder), tmp_path / "audit")


def test_a_plain_folder_keeps_its_files_and_their_names(
    new_audit: Audit, new_cohort: CohortMaker, retrained: Any, hospital: Path, tmp_path: Path
) -> None:
    folder = new_cohort("plain", images_with_copies())
    (folder / "part").mkdir()
    for number in range(25, 50):
        (folder / f"{number:04d}.png").rename(folder / "part" / f"{number:04d}.png")
    kept = [n for n in range(50) if n not in COPIED]
    names = {n: f"{n:04d}.png" if n < 25 else f"part/{n:04d}.png" for n in range(50)}
    rows = "".join(f"{names[n]},{n % 2},scanner {n}\n" for n in range(50))
    (folder / "labels.csv").write_text("image,label,comment\n" + rows, encoding="utf-8")
    (folder / "readme.txt").write_text("0003.png is odd", encoding="utf-8")
    before = contents(folder)
    first = after_run(new_audit(folder))
    second = audit_without_flagged(first, retrained, hospital)
    assert second is not None
    assert second.results["cohort"]["images"] == 48
    assert contents(folder) == before
    after = contents(tmp_path / "audit" / COHORT_DIR)
    assert after.keys() == {*(names[n] for n in kept), "labels.csv", "datasheet.md", "filtered.json"}
    assert (
        open_cohort(tmp_path / "audit" / COHORT_DIR, hospital, get_modality("xray")).filtered == second.cohort.filtered
    )
    assert all(after[names[n]] == before[names[n]] for n in kept)
    labels = {name: label for name, label, _ in read_labels(tmp_path / "audit" / COHORT_DIR)}
    assert labels == {names[n]: n % 2 for n in kept}
    # The same command again finds the folder complete; another cohort in its place is refused.
    again = audit_without_flagged(first, retrained, hospital)
    assert again is not None
    assert again.results == second.results
    Image.fromarray(strangers(60)[-1]).save(tmp_path / "audit" / COHORT_DIR / names[0])
    with pytest.raises(DataError, match="holds another cohort than this audit leaves"):
        audit_without_flagged(first, retrained, hospital)


def test_labels_of_class_folders_survive_a_class_without_images(
    new_audit: Audit, new_cohort: CohortMaker, retrained: Any, hospital: Path, tmp_path: Path
) -> None:
    folder = new_cohort("classes", images_with_copies())
    for number in range(50):
        home = folder / ("tuberculosis" if number in COPIED else "normal")
        home.mkdir(exist_ok=True)
        (folder / f"{number:04d}.png").rename(home / f"{number:04d}.png")
    first = after_run(new_audit(folder))
    second = audit_without_flagged(first, retrained, hospital)
    assert second is not None
    assert second.cohort.labels is not None
    assert second.cohort.labels.tolist() == [0] * 48


def test_an_audit_by_the_networks_that_filtered_says_so(
    new_audit: Audit, new_cohort: CohortMaker, networks: Networks, hospital: Path, tmp_path: Path
) -> None:
    first = after_run(new_audit(new_cohort("plain", images_with_copies())))
    audit_without_flagged(first, lambda seed: networks, hospital)
    report = (tmp_path / "audit" / AUDIT_DIR / "report.html").read_text(encoding="utf-8")
    assert "This report comes from the same networks" in report


@pytest.mark.parametrize(
    ("copies", "words"),
    [(0, "none was found to be a copy"), (4, "4 of 25 images are copies, more than 10%. The generator is at fault")],
)
def test_nothing_is_removed_where_nothing_or_too_much_would_be(
    copies: int,
    words: str,
    new_audit: Audit,
    new_cohort: CohortMaker,
    retrained: Any,
    hospital: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    engine = new_audit(new_cohort("some", strangers(25 - copies) + [real_image(20 + i) for i in range(copies)]))
    engine.run()
    assert audit_without_flagged(engine, retrained, hospital) is None
    assert words in capsys.readouterr().out
    assert not (tmp_path / "audit" / COHORT_DIR).exists()


def test_nothing_is_removed_by_an_instrument_that_failed(
    new_audit: Audit, new_cohort: CohortMaker, retrained: Any, hospital: Path, tmp_path: Path
) -> None:
    engine = after_run(new_audit(new_cohort("plain", images_with_copies())))
    assert engine.verdict is not None
    engine.verdict = type(engine.verdict)(UNUSABLE, "", ())
    assert audit_without_flagged(engine, retrained, hospital) is None
    assert not (tmp_path / "audit" / COHORT_DIR).exists()


def test_a_manifest_whose_removals_do_not_add_up_is_refused(tmp_path: Path) -> None:
    manifest = {"configuration": {"n_images": 3}, "class_names": ["a"], "filtered": [{"removed": 2}]}
    images = [(0, torch.from_numpy(image)) for image in strangers(2)]
    with pytest.raises(ValueError, match="it has 2 images, and 3 less 2 that an audit removed were asked for"):
        write_cohort(tmp_path / "cohort", images, ("a",), manifest, "")


def test_what_is_left_of_a_cohort_has_the_formats_of_the_whole(hospital: Path, tmp_path: Path) -> None:
    manifest = {"configuration": {"n_images": 3}, "class_names": ["normal", "tuberculosis"]}
    images = [(label, torch.tensor(image)) for label, image in zip((0, 0, 1), strangers(3), strict=True)]
    folder = tmp_path / "cohort"
    write_cohort(folder, images, ("normal", "tuberculosis"), manifest, "", ("png", "dicom"))
    cohort = open_cohort(folder, hospital, get_modality("xray"))
    removal = {"removed": 1, "images": 3, "cohort_sha256": cohort.sha256, "networks": {}}
    write_without(
        replace(cohort, records=cohort.records[1:], filtered=(removal,)), tmp_path / "rest", ("normal", "tuberculosis")
    )
    verify_cohort(tmp_path / "rest")
    assert contents(tmp_path / "rest" / "dicom") == {
        "normal_000001.dcm": sha256_file(folder / "dicom" / "normal_000002.dcm"),
        "tuberculosis_000001.dcm": sha256_file(folder / "dicom" / "tuberculosis_000001.dcm"),
    }
