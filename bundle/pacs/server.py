# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""What the two ways to a PACS, STOW-RS and C-STORE, have in common."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Protocol

from pydicom import Dataset

__all__ = [
    "ANSWER_S",
    "CONNECT_S",
    "Instance",
    "PacsError",
    "RefusedError",
    "Server",
    "UnavailableError",
    "check_status",
    "open_server",
    "untrusted",
]

#: Seconds within which a server must take a connection, and answer a request.
CONNECT_S, ANSWER_S = 10, 60

# What each library is called where packages are installed from.
_PACKAGES = {"dicomweb_client": "dicomweb-client", "pynetdicom": "pynetdicom", "requests": "requests"}
# Status codes of DICOM PS3.7, Annex C, and PS3.4, Table B.2-1; STOW-RS has the same (PS3.18, Table I.2-2).
_DUPLICATE = 0x0111
_STORED = (0x0000, 0x0001, 0x0107, _DUPLICATE, 0x0116)
_MEANINGS = {
    0x0110: "processing failure",
    0x0117: "invalid object instance",
    0x0122: "SOP class not supported",
    0x0124: "not authorised",
    0x0210: "duplicate invocation",
    0x0211: "unrecognised operation",
    0x0212: "mistyped argument",
    0xC122: "transfer syntax not supported",
}
_CLASSES = {0xA7: "out of resources", 0xA9: "data set does not match its SOP class"}


class PacsError(RuntimeError):
    """A PACS cannot be used as it was named; the message says why, and how to mend it."""


class UnavailableError(PacsError):
    """A failure that may pass by itself: the server does not answer, or has no room at the moment."""


class RefusedError(PacsError):
    """The server refuses one object, with the status as the message."""


@dataclass(frozen=True)
class Instance:
    """A DICOM object as servers know it.

    Attributes:
        image: name of its image in the cohort.
        study: Study Instance UID; of no other object of a cohort.
        series: Series Instance UID.
        uid: SOP Instance UID.
    """

    image: str
    study: str
    series: str
    uid: str


class Server(Protocol):
    """A PACS that stores objects.

    Attributes:
        name: address, for messages.
    """

    name: str

    def store(self, dataset: Dataset) -> None:
        """Stores an object, and returns once the server has said that it did.

        Args:
            dataset: Secondary Capture image with its file meta information, Explicit VR Little Endian.

        Raises:
            UnavailableError: the server does not answer.
            RefusedError: the server refuses the object.
            PacsError: the server cannot be used.
        """

    def lists(self, instance: Instance) -> bool | None:
        """Returns whether a search on the server finds an object; None if it answers no searches.

        Raises:
            UnavailableError: the server does not answer.
        """

    def close(self) -> None:
        """Ends the connection."""


def open_server(
    url: str,
    aet: str | int,
    host: str,
    port: int,
    calling_aet: str | int,
    tls: bool = False,
    ca_file: str | os.PathLike[str] | None = None,
) -> Server:
    """Prepares the way to a PACS; it is not contacted yet.

    Args:
        url: address of a DICOMweb service, for STOW-RS; "" for C-STORE.
        aet: application entity title of the server, for C-STORE.
        host: name or address of its machine.
        port: its port.
        calling_aet: application entity title that the server is told.
        tls: whether C-STORE uses TLS.
        ca_file: PEM file of the certificates that vouch for the server's; None for those that are commonly trusted.

    Raises:
        PacsError: the library is not installed, or ca_file holds no certificates.
    """
    for library in _PACKAGES:  # they report each request, and each failure once more
        logging.getLogger(library).setLevel(logging.CRITICAL)
    try:
        if url:
            from bundle.pacs.dicomweb import DicomWebServer

            return DicomWebServer(url, ca_file, os.environ)
        from bundle.pacs.dimse import DimseServer

        return DimseServer(str(aet), host, port, str(calling_aet), tls, ca_file)
    except ModuleNotFoundError as error:
        package = _PACKAGES.get(str(error.name).partition(".")[0])
        if package is None:
            raise
        raise PacsError(
            f"Sending needs the package {package}, which is not installed: install requirements.lock, which has it, or "
            f"run pip install {package}."
        ) from error


def check_status(name: str, status: int, comment: str = "") -> None:
    """Judges the status with which a server answers an attempt to store an object.

    A warning means that the object was stored. So does the status "duplicate SOP instance": the unique identifiers are
    derived from the content, so the server has this object.

    Args:
        name: address of the server, for messages.
        status: status of C-STORE, or failure reason of STOW-RS.
        comment: further words of the server.

    Raises:
        UnavailableError: the server has no room.
        RefusedError: it refuses the object.
    """
    if status in _STORED or status >> 12 == 0xB:
        return
    meaning = _MEANINGS.get(status) or _CLASSES.get(status >> 8) or ("cannot understand" if status >> 12 == 0xC else "")
    words = f"status 0x{status:04X}" + f" ({meaning})" * bool(meaning) + f": {comment}" * bool(comment)
    if status >> 8 == 0xA7:
        raise UnavailableError(f"{name} has no room now ({words})")
    raise RefusedError(words)


def untrusted(name: str, reason: str) -> PacsError:
    """Returns the error of a server whose certificate is not trusted.

    Args:
        name: address of the server.
        reason: words of the TLS library.
    """
    return PacsError(
        f"{name} cannot be trusted ({reason}). If a certificate authority of the hospital's own vouches for it, name "
        "its PEM file: --ca_file FILE."
    )
