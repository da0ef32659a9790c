# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""What the documents promise: their links lead somewhere, their commands name what exists."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from monai.bundle import run

from scripts.tools.draw_architecture import PICTURE, architecture_svg
from tests.conftest import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
#: Options of MONAI's command itself, which no configuration declares.
MONAI_OPTIONS = {"bundle_root", *inspect.signature(run).parameters} - {"override"}
FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


class Command(NamedTuple):
    """A call of ``monai.bundle run``: ``run_id``, configuration files and the names of its other options."""

    run_id: str
    files: list[str]
    options: list[str]


@pytest.fixture(params=DOCUMENTS, ids=[path.relative_to(ROOT).as_posix() for path in DOCUMENTS])
def document(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def without_code(text: str) -> str:
    return re.sub(r"`[^`]*`", "", FENCE.sub("", text))


def code_of(text: str) -> list[str]:
    """Lines of code: of blocks, whose continued lines are joined and whose variables are put in, and of spans."""
    lines = []
    prose = FENCE.sub("", text)
    indented = re.findall(r"(?:^ {4}.*\n)+", prose, re.MULTILINE)
    for block in [*FENCE.findall(text), *indented]:
        for name, value in re.findall(r'^(\w+)="(.*)"$', block, re.MULTILINE):
            block = block.replace(f"${name}", value)
        lines += [re.sub(r"\s+# .*", "", line).strip() for line in block.replace("\\\n", " ").splitlines()]
    return lines + [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    found: list[str] = []
    for heading in re.findall(r"^#+ +(.+?)\s*$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return set(found)


def command_of(line: str) -> Command | None:
    """Reads a call of ``monai.bundle run``; None of a line that is none, or that leaves its configuration out."""
    _, call, rest = line.partition("-m monai.bundle run ")
    words = shlex.split(rest) if call else []
    if not any(word.startswith("--config_file") for word in words):
        return None
    run_id = "run" if words[0].startswith("--") else words.pop(0)
    given = dict(re.findall(r"--([\w#]+)(?:=|\0)([^\0]*)", "\0".join(words)))
    file = given.pop("config_file")
    files = ast.literal_eval(file) if file.startswith("[") else [file]
    return Command(run_id, files, [re.split("#", name)[0] for name in given])


def configuration(files: list[str]) -> dict[str, Any]:
    """Joins configuration files; those that a user writes for a modality of their own are not in configs/."""
    joined: dict[str, Any] = {}
    for name in files:
        if name.startswith("configs/"):
            joined |= json.loads((ROOT / name).read_text(encoding="utf-8"))
    return joined


def test_every_link_leads_to_a_file_and_a_heading(document: Path) -> None:
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", without_code(document.read_text(encoding="utf-8"))):
        if re.match(r"https?:|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path), target


def test_every_command_names_run_ids_files_and_options_that_exist(document: Path) -> None:
    for line in code_of(document.read_text(encoding="utf-8")):
        command = command_of(line)
        if command is None:
            continue
        config = configuration(command.files)
        assert command.run_id in config, line
        assert set(command.options) <= config.keys() | MONAI_OPTIONS, line


def test_every_program_and_target_exists(document: Path) -> None:
    targets = re.findall(r"^([a-z_]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for line in code_of(document.read_text(encoding="utf-8")):
        if program := re.match(r"python -m (scripts[\w.]*)", line):
            assert (ROOT / f"{program[1].replace('.', '/')}.py").is_file(), line
        if target := re.match(r"make (\w+)", line):
            assert target[1] in targets, line


def test_every_picture_is_shown() -> None:
    shown = "".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    assert [path.name for path in (ROOT / "docs" / "images").iterdir() if f"images/{path.name}" not in shown] == []


def test_results_fit_on_a_few_screens() -> None:
    assert len((ROOT / "docs" / "results.md").read_text(encoding="utf-8").splitlines()) <= 200


@pytest.mark.parametrize(
    ("line", "command"),
    [
        (
            "python -m monai.bundle run --config_file configs/a.json --seed 1",
            Command("run", ["configs/a.json"], ["seed"]),
        ),
        (
            "torchrun -m monai.bundle run generate --config_file \"['a.json','b.json']\" --gate#threshold=1",
            Command("generate", ["a.json", "b.json"], ["gate"]),
        ),
        ("python -m monai.bundle run generate ...", None),
        ("make generate", None),
    ],
)
def test_commands_are_read(line: str, command: Command | None) -> None:
    assert command_of(line) == command


def test_anchors_are_those_of_github(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("# The walk: `w_a` to [w_b](b.md)\n```\n# no heading\n```\n## Ends\n### Ends\n", encoding="utf-8")
    assert anchors(path) == {"the-walk-w_a-to-w_b", "ends", "ends-1"}


def test_map_shows_the_code_as_it_is() -> None:
    assert PICTURE.read_text(encoding="utf-8") == architecture_svg(), "run python -m scripts.tools.draw_architecture"
