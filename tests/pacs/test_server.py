# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ast
import sys

import pytest

from bundle.pacs.server import PacsError, RefusedError, UnavailableError, check_status, open_server
from tests.conftest import ROOT


@pytest.mark.parametrize("status", [0x0000, 0x0001, 0x0107, 0x0111, 0x0116, 0xB000, 0xB006, 0xBFFF])
def test_success_warnings_and_duplicates_count_as_stored(status: int) -> None:
    check_status("PACS", status)


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (0x0110, RefusedError, "status 0x0110 (processing failure): disk of stone"),
        (0xA7FF, UnavailableError, "PACS has no room now (status 0xA7FF (out of resources): disk of stone)"),
        (0xA800, RefusedError, "status 0xA800: disk of stone"),
        (0xC122, RefusedError, "status 0xC122 (transfer syntax not supported): disk of stone"),
        (0xC000, RefusedError, "status 0xC000 (cannot understand): disk of stone"),
    ],
)
def test_other_statuses_are_refusals_unless_they_may_pass(status: int, kind: type[PacsError], message: str) -> None:
    with pytest.raises(PacsError) as caught:
        check_status("PACS", status, "disk of stone")
    assert (type(caught.value), str(caught.value)) == (kind, message)


@pytest.mark.parametrize(
    ("library", "package", "named"),
    [
        ("dicomweb_client", "dicomweb-client", ("http://localhost", "", "", 104, "PLAN")),
        ("pynetdicom", "pynetdicom", ("", "PACS", "localhost", 104, "PLAN")),
    ],
)
def test_library_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, library: str, package: str, named: tuple[str, str, str, int, str]
) -> None:
    for name in [name for name in sys.modules if name.startswith(("bundle.pacs.di", library))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(PacsError, match=f"run pip install {package}"):
        open_server(*named)


def test_nothing_else_of_the_bundle_imports_the_libraries() -> None:
    optional = {"bundle.pacs.dicomweb", "bundle.pacs.dimse", "dicomweb_client", "pynetdicom", "requests"}
    found = set()
    for path in (ROOT / "bundle").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            if any(name in optional or name.partition(".")[0] in optional for name in names):
                found.add(path.relative_to(ROOT / "bundle").as_posix())
    assert found == {"pacs/dicomweb.py", "pacs/dimse.py"}
