# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Writing and verification of the cohort folder, the only folder that is released."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path, PurePosixPath
from typing import Any

import ignite.distributed as idist
import torch
from PIL import Image
from torch import Tensor

from bundle.class_names import class_names_problem
from bundle.cohort.formats import FORMATS, PNG, chosen_formats, formats_of
from bundle.cohort.image import CohortImage
from bundle.cohort.ledger import CohortError
from bundle.figures import from_uint8, image_grid, png_bytes
from bundle.files import atomic_folder, content_digest, json_text, sha256_file
from bundle.markup import csv_text, csv_value, printable

__all__ = [
    "ADDING",
    "COLUMNS",
    "FILTERED",
    "FILTERED_FILE",
    "MANIFEST",
    "RELEASES",
    "SHEET_IMAGES",
    "image_names",
    "images_sha256",
    "read_labels",
    "seal_cohort",
    "sealed_manifest",
    "verify_cohort",
    "write_cohort",
]

MANIFEST = "manifest.json"
#: Version of the manifest's format; version 1 lacked the manifest's own hash.
FORMAT = 2
MANIFEST_SHA256 = "manifest_sha256"
#: Entry of the manifest with the SHA-256 of files that an interrupted export was adding: they may be absent.
ADDING = "adding"
#: Entry of the manifest that lists removals of images by audits, each with the number ``removed``.
FILTERED = "filtered"
#: Entry of the manifest that lists the reviews after which images were released, each with the number ``left_out``.
RELEASES = "releases"
#: File with the removals by audits in folders without a manifest.
FILTERED_FILE = "filtered.json"
LABELS = "labels.csv"
#: Columns of labels.csv.
COLUMNS = ["image", "label", "label_name"]
# Largest size of the contact sheet, for each class.
SHEET_ROWS, SHEET_COLUMNS = 2, 12
#: Number of images of each class that it shows at most.
SHEET_IMAGES = SHEET_ROWS * SHEET_COLUMNS
CURE = "Remove the folder and run the same command to make it anew."


def write_cohort(
    cohort_dir: str | os.PathLike[str],
    images: Iterable[tuple[int, Tensor]],
    class_names: tuple[str, ...],
    manifest: dict[str, Any],
    datasheet: str,
    formats: Sequence[str] = (PNG,),
) -> None:
    """Writes a cohort under a temporary name, verifies it and renames it.

    In a distributed run, each process writes its share of the images, and the first everything else.

    Args:
        cohort_dir: path of the folder; it must not exist.
        images: pairs of label and image, uint8 [H, W] or [H, W, 3], ordered by class.
        class_names: name of each label; image files are named after it.
        manifest: description of how the cohort was made; the format version, the SHA-256 of every file and that of the
            manifest itself are added.
        datasheet: text of datasheet.md.
        formats: file formats of the images, see `bundle.cohort.formats.chosen_formats`.

    Raises:
        CohortError: the path exists, a class name cannot be part of a file name, or the number of images differs from
            the manifest.
        OSError: a file cannot be written, for example because the disk is full.
    """
    target = Path(cohort_dir)
    rank = idist.get_rank()
    if problem := class_names_problem(class_names):
        raise CohortError(
            f"The name of a class cannot be part of a file's name: {problem}. Give the class another name, which "
            f"differs from the others in more than capital letters, and train anew."
        )
    if rank == 0 and os.path.lexists(target):
        raise CohortError(f"{target} exists and is not overwritten. Name another output_dir, or remove that folder.")
    with atomic_folder(target) if rank == 0 else nullcontext() as folder:
        temporary = Path(str(idist.broadcast(str(folder) if rank == 0 else "")))
        formats = chosen_formats(formats)
        if rank == 0:
            for name in formats:
                (temporary / FORMATS[name].folder).mkdir()
        idist.barrier()
        described = _described(images, class_names, str(manifest.get("modality", "")))
        rows, sheet, files = _write_images(temporary, described, len(class_names), formats)
        if rank > 0:
            return
        seal_cohort(temporary, rows, sheet, class_names, manifest, datasheet, files)


def seal_cohort(
    folder: Path,
    rows: Sequence[tuple[str, int, str]],
    sheet: Sequence[Sequence[Tensor]],
    class_names: Sequence[str],
    manifest: Mapping[str, Any],
    datasheet: str,
    files: Mapping[str, str],
) -> None:
    """Adds labels, contact sheet, datasheet and manifest to a folder of images, and verifies the result.

    Args:
        folder: folder that holds the images.
        rows: rows of labels.csv.
        sheet: images for the contact sheet by class, uint8 [H, W] or [H, W, 3], at most `SHEET_IMAGES` of each.
        class_names: names of these classes.
        manifest: see `write_cohort`.
        datasheet: see `write_cohort`.
        files: SHA-256 of each image file by its name, of the data in memory: with hashes of the files, the verification
            would be pointless.

    Raises:
        CohortError: the folder does not hold what the manifest says.
        OSError: see `write_cohort`.
    """
    hashes = dict(files)
    for name, content in (
        (LABELS, csv_text([COLUMNS, *rows]).encode()),
        ("contact_sheet.png", png_bytes(_contact_sheet(sheet, class_names), optimize=True)),
        ("datasheet.md", datasheet.encode()),
    ):
        hashes[name] = _write(folder / name, content)
    _write(folder / MANIFEST, sealed_manifest(manifest, hashes).encode())
    verify_cohort(folder)


def _described(
    images: Iterable[tuple[int, Tensor]], class_names: tuple[str, ...], modality: str
) -> Iterator[CohortImage]:
    for label, pixels in images:
        yield CohortImage(pixels.contiguous().numpy(), label, class_names[label], modality)


def _write_images(
    folder: Path, images: Iterable[CohortImage], n_classes: int, formats: Sequence[str]
) -> tuple[list[tuple[str, int, str]], list[list[Tensor]], dict[str, str]]:
    """Writes this process's share of the images.

    Returns:
        Rows of labels.csv, images for the contact sheet by class, and the SHA-256 of each image file by its name.
    """
    rank, processes = idist.get_rank(), idist.get_world_size()
    numbers = [0] * n_classes
    sheet: list[list[Tensor]] = [[] for _ in numbers]
    rows: list[tuple[str, int, str]] = []
    names: list[str] = []
    hashes: dict[int, str] = {}
    for image in images:
        numbers[image.label] += 1
        stem = f"{image.label_name}_{numbers[image.label]:06d}"
        for form in (FORMATS[name] for name in formats):
            if len(rows) % processes == rank:
                hashes[len(names)] = _write(folder / form.name(stem), form.encode(image))
            names.append(form.name(stem))
        rows.append((FORMATS[PNG].name(stem), image.label, image.label_name))
        if len(sheet[image.label]) < SHEET_IMAGES:
            sheet[image.label].append(torch.from_numpy(image.pixels))
    return rows, sheet, dict(zip(names, _together(hashes, len(names)), strict=True))


def sealed_manifest(manifest: Mapping[str, Any], files: Mapping[str, str]) -> str:
    """Returns the text of a manifest with the format version, the SHA-256 of every file and that of the manifest.

    Args:
        manifest: description of how the cohort was made.
        files: SHA-256 of every file but the manifest, by its name.
    """
    content = {key: value for key, value in manifest.items() if key != MANIFEST_SHA256}
    content |= {"format": FORMAT, "files": dict(files)}
    return json_text({**content, MANIFEST_SHA256: content_digest(content, 64)})


def _write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def _together(hashes: dict[int, str], number: int) -> list[str]:
    """Gathers the SHA-256 of each file from the processes that wrote them."""
    digests = torch.zeros(number, 32, dtype=torch.int32)
    for index, sha256 in hashes.items():
        digests[index] = torch.tensor(list(bytes.fromhex(sha256)))
    if idist.get_world_size() > 1:
        digests = torch.as_tensor(idist.all_reduce(digests))
    return [bytes(row).hex() for row in digests.tolist()]


def verify_cohort(cohort_dir: str | os.PathLike[str], cure: str = CURE) -> dict[str, Any]:
    """Compares a cohort with its manifest: every file, the labels, the counts and the manifest itself.

    Files that an interrupted export was adding may be absent.

    Args:
        cohort_dir: path of the cohort.
        cure: advice that ends the message of an error.

    Returns:
        The manifest.

    Raises:
        CohortError: a file is missing, changed or added, or the manifest cannot be read or has another format version.
    """
    folder = Path(cohort_dir)
    manifest = _read_manifest(folder, cure)
    files: dict[str, str] = manifest["files"]
    known = {**manifest.get(ADDING, {}), **files}
    problems = []
    found = set()
    expected_folders = {parent.as_posix() for name in known for parent in PurePosixPath(name).parents}
    for entry in _entries(folder):
        name = entry.relative_to(folder).as_posix()
        mode = entry.lstat().st_mode
        if stat.S_ISLNK(mode):
            problems.append(f"{name} is a link")
        elif stat.S_ISDIR(mode):
            problems += [f"the folder {name} does not belong to it"] * (name not in expected_folders)
        elif not stat.S_ISREG(mode):
            problems.append(f"{name} is no regular file")
        elif name in known:
            found.add(name)
        elif name != MANIFEST:
            problems.append(f"{name} does not belong to it")
    problems = [f"{name} is absent" for name in sorted(set(files) - found)] + sorted(problems)
    problems += [f"{name} was changed" for name in sorted(found) if sha256_file(folder / name) != known[name]]
    if not problems:
        try:
            problems += _disagreements(folder, manifest)
        except (AttributeError, KeyError, TypeError):
            problems.append(f"{MANIFEST} has fields of another form")
    if problems:
        only_added = all(problem.endswith("does not belong to it") for problem in problems)
        raise CohortError(
            f"{folder} is not the cohort that its manifest describes: {printable('; '.join(problems[:5]))}"
            f"{' and more' if len(problems) > 5 else ''}. {'Remove what was added.' if only_added else cure}"
        )
    return manifest


def _entries(folder: Path) -> Iterator[Path]:
    """Yields all files and folders below a folder, without following links."""
    with os.scandir(folder) as entries:
        for entry in entries:
            yield Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                yield from _entries(Path(entry.path))


def _read_manifest(folder: Path, cure: str) -> dict[str, Any]:
    path = folder / MANIFEST
    if not folder.is_dir() or folder.is_symlink():
        raise CohortError(
            f"{folder} is a link or no folder, and so no cohort. Move it away, or name another output_dir."
        )
    # Opening a named pipe would block until another process writes to it.
    if not os.path.lexists(path) or not stat.S_ISREG(path.lstat().st_mode):
        raise CohortError(f"{path} cannot be read (there is no such file): this is no complete cohort. {cure}")
    try:
        text = path.read_text(encoding="utf-8")
        manifest: dict[str, Any] = json.loads(text)
        written = manifest["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CohortError(f"{path} cannot be read (it is damaged): this is no complete cohort. {cure}") from error
    if written != FORMAT or isinstance(written, bool):
        raise CohortError(
            f"{path} is of format {printable(str(written)[:40])}, and this release reads format {FORMAT}. Verify it "
            f"with the release that wrote it; or remove the folder and run the same command to make it anew."
        )
    content = {key: value for key, value in manifest.items() if key != MANIFEST_SHA256}
    if manifest.get(MANIFEST_SHA256) != content_digest(content, 64) or text != json_text(manifest):
        raise CohortError(f"{path} was edited: it is not what its own hash says. {cure}")
    listed = (manifest.get("files"), manifest.get(ADDING, {}))
    if not all(isinstance(files, dict) and all(map(_is_inside, files)) for files in listed):
        raise CohortError(f"{path} names files outside the cohort. {cure}")
    return manifest


def _is_inside(name: str) -> bool:
    return PurePosixPath(name).as_posix() == name and not {"..", "."} & {*name.split("/")} and not name.startswith("/")


def read_labels(cohort_dir: str | os.PathLike[str]) -> list[tuple[str, int, str]]:
    """Returns the rows of a cohort's labels.csv: image path relative to the folder, label and label name.

    Raises:
        OSError: the file cannot be read.
        ValueError: the columns or labels are not those of a cohort.
        csv.Error: the file is not valid CSV.
    """
    with open(Path(cohort_dir) / LABELS, newline="", encoding="utf-8") as stream:
        head, *rows = csv.reader(stream, strict=True)
    if head != COLUMNS:
        raise ValueError(f"labels.csv has the columns {head}")
    return [(name, int(label), csv_value(label_name)) for name, label, label_name in rows]


def image_names(files: Iterable[str]) -> set[str]:
    """Returns the names of the images (PNG files) among the names of a cohort's files."""
    return {name for name in files if name.startswith(f"{FORMATS[PNG].folder}/")}


def images_sha256(manifest: Mapping[str, Any]) -> str:
    """Returns a hash of the names, images and labels of a cohort, taken from its manifest.

    It tells whether two cohorts have the same images; further formats and the datasheet do not count.

    Args:
        manifest: manifest that was compared with the files.
    """
    files = manifest["files"]
    return content_digest({name: files[name] for name in (*image_names(files), LABELS)}, 64)


def _disagreements(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """Returns the contradictions between the labels, the images and the manifest's counts."""
    images = image_names(manifest["files"])
    try:
        labelled = read_labels(folder)
    except (OSError, ValueError, csv.Error):
        return ["labels.csv is no table of image, label and label_name"]
    problems = []
    for form in (FORMATS[name] for name in formats_of(manifest["files"])):
        if {name for name in manifest["files"] if name.startswith(f"{form.folder}/")} != form.names(images):
            problems.append(f"{form.folder} does not hold one file for each image")
    names = [name for name, *_ in labelled]
    if len(set(names)) < len(names) or set(names) != images:
        problems.append(f"labels.csv lists {len(names)} images, and there are {len(images)}")
    class_names = manifest.get("class_names")
    if class_names is not None and any(
        not 0 <= label < len(class_names) or class_names[label] != label_name for _, label, label_name in labelled
    ):
        problems.append("labels.csv gives labels that are not those of the manifest's class_names")
    if "gate" in manifest:
        listed = Counter(label_name for *_, label_name in labelled)
        counted = Counter({name: counts["images"] for name, counts in manifest["gate"].items()})
        for name in sorted(listed.keys() | counted.keys()):
            if listed[name] != counted[name]:
                problems.append(f"it has {listed[name]} images of {name}, and the manifest says {counted[name]}")
    removed = sum(entry["removed"] for entry in manifest.get(FILTERED, []))
    left_out = sum(entry["left_out"] for entry in manifest.get(RELEASES, []))
    gone = removed + left_out
    wanted = manifest.get("configuration", {}).get("n_images", len(images) + gone)
    if len(images) + gone != wanted:
        less = f" less {removed} that an audit removed" if removed else ""
        less += f" less {left_out} that a review left out" if left_out else ""
        problems.append(f"it has {len(images)} images, and {wanted}{less} were asked for")
    return problems


def _contact_sheet(sheet: Sequence[Sequence[Tensor]], class_names: Sequence[str]) -> Image.Image:
    """Returns a grid of full rows with the same number of images for every class."""
    shown = [pixels for pixels in sheet if pixels]
    number = min(len(pixels) for pixels in shown)
    columns = min(SHEET_COLUMNS, number)
    rows = min(SHEET_ROWS, number // columns)
    pixels = torch.stack([image for images in shown for image in images[: rows * columns]])
    labels = [printable(name) for name, images in zip(class_names, sheet, strict=True) if images for _ in range(rows)]
    return image_grid(from_uint8(pixels), columns, labels)
