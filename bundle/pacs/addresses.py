# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""How options name a server."""

from __future__ import annotations

import re
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationInfo

from bundle.option_types import refuse

__all__ = ["AETitle", "OptionalAETitle", "OptionalHost", "OptionalUrl", "Port"]

EXAMPLE = "http://localhost:8042/dicom-web"


def _ae_title(title: Any) -> Any:
    """Refuses what is no application entity title (PS3.5, 6.2); one of digits is a number on the command line."""
    whole = isinstance(title, str | int) and not isinstance(title, bool)
    if not whole or not re.fullmatch(r"(?! )[ -\[\]-~]{1,16}(?<! )", str(title)):
        raise refuse(f"must be an AE title, 1 to 16 characters of ASCII without a backslash, not {title!r}.")
    return title


def _host(host: Any) -> Any:
    if not isinstance(host, str) or not re.fullmatch(r"[\w.:-]+", host):
        raise refuse(f"must be the name or address of a machine, as in localhost, not {host!r}.")
    return host


def _url(url: Any) -> Any:
    try:
        parts = urlsplit(url)
        known = url.isprintable() and parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except (ValueError, TypeError, AttributeError):
        known = False
    if not known:
        raise refuse(f"must be the address of a DICOMweb service, as in {EXAMPLE}, not {url!r}.")
    if "@" in parts.netloc:
        raise refuse(
            "holds a user, whom every list of processes would show. Leave that out, and set the environment variables "
            "DICOMWEB_USER and DICOMWEB_PASSWORD."
        )
    if parts.query or parts.fragment or "[" in parts.netloc:
        raise refuse(f"must be an address without ?, # and [, as in {EXAMPLE}, not {url!r}.")
    return url


def _of_one_server(url: Any, info: ValidationInfo) -> Any:
    aet, host = (info.data.get(name) for name in ("aet", "host"))
    if url and (aet or host):
        raise refuse("is for STOW-RS, and --aet and --host are for C-STORE. Give one or the other.")
    if not url and {"aet", "host"} <= info.data.keys() and not (aet and host):
        raise refuse(f"must be given, as in {EXAMPLE}; or --aet, --host and --port of a server that takes C-STORE.")
    return url


#: Title of an application entity.
AETitle = Annotated[Any, AfterValidator(_ae_title)]
#: The same, or "".
OptionalAETitle = Annotated[Any, AfterValidator(lambda value: value if value == "" else _ae_title(value))]
#: Name or address of a machine, or "".
OptionalHost = Annotated[Any, AfterValidator(lambda value: value if value == "" else _host(value))]
#: TCP port.
Port = Annotated[int, Field(ge=1, le=65535)]
#: Address of a DICOMweb service, or "" where fields ``aet`` and ``host``, declared before, name another server.
OptionalUrl = Annotated[
    Any, AfterValidator(lambda value: value if value == "" else _url(value)), AfterValidator(_of_one_server)
]
