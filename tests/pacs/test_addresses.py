# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest

from bundle.commands.cohorts import Send
from bundle.options import validate

NONE: dict[str, Any] = {"aet": "", "host": "", "url": ""}


def problems(**options: Any) -> list[str]:
    return validate(Send, {**NONE, **options})


@pytest.mark.parametrize(
    "options",
    [
        {"url": "http://localhost:8042/dicom-web"},
        {"url": "https://pacs.hospital.example/rs/"},
        {"url": "http://10.0.0.1"},
        {"aet": "ORTHANC", "host": "localhost"},
        {"aet": "A b-C_1", "host": "fe80::1", "port": 1},
        {"aet": 1234, "host": "10.0.0.1", "port": 65535, "calling_aet": "X" * 16},
    ],
)
def test_address_of_one_server(options: dict[str, Any]) -> None:
    assert problems(**options) == []


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({}, "--url must be given, as in http://localhost:8042/dicom-web; or --aet, --host and --port of a server"),
        ({"aet": "PACS"}, "--url must be given, as in http"),
        ({"host": "localhost"}, "--url must be given, as in http"),
        ({"url": "http://a", "aet": "PACS"}, "--url is for STOW-RS, and --aet and --host are for C-STORE."),
        ({"url": "localhost:8042"}, "--url must be the address of a DICOMweb service, as in http://localhost:8042/dic"),
        ({"url": "ftp://localhost"}, "--url must be the address of a DICOMweb service"),
        ({"url": "http://"}, "--url must be the address of a DICOMweb service"),
        ({"url": "http://a:99999"}, "--url must be the address of a DICOMweb service"),
        ({"url": "http://a\n"}, "--url must be the address of a DICOMweb service"),
        ({"url": 8042}, "--url must be the address of a DICOMweb service"),
        ({"url": "http://me:secret@a"}, "--url holds a user, whom every list of processes would show."),
        ({"url": "http://a?x=1"}, "--url must be an address without ?, # and [, as in"),
        ({"url": "http://[::1]:8042"}, "--url must be an address without ?, # and [, as in"),
        ({"aet": "X" * 17, "host": "a"}, "--aet must be an AE title, 1 to 16 characters of ASCII without a backslash"),
        ({"aet": "A\\B", "host": "a"}, "--aet must be an AE title"),
        ({"aet": " A", "host": "a"}, "--aet must be an AE title"),
        ({"aet": "Ä", "host": "a"}, "--aet must be an AE title"),
        ({"aet": 1.5, "host": "a"}, "--aet must be an AE title"),
        ({"aet": "A", "host": "a/b"}, "--host must be the name or address of a machine, as in localhost, not 'a/b'."),
        ({"aet": "A", "host": 10.1}, "--host must be the name or address of a machine"),
        ({"aet": "A", "host": "a", "port": 0}, "--port must be at least 1, not 0. The nearest is 1."),
        ({"aet": "A", "host": "a", "calling_aet": ""}, "--calling_aet must be an AE title"),
    ],
)
def test_what_names_no_server_is_refused(options: dict[str, Any], problem: str) -> None:
    (found,) = problems(**options)
    assert found.startswith(problem)
