# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Storage by C-STORE and search by C-FIND (DICOM PS3.4, B and C), by way of pynetdicom."""

from __future__ import annotations

import os
import socket
import ssl

from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, SecondaryCaptureImageStorage
from pynetdicom import AE, Association
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind as FIND  # type: ignore[attr-defined]

from bundle.pacs.server import ANSWER_S, CONNECT_S, Instance, PacsError, UnavailableError, check_status, untrusted

__all__ = ["DimseServer"]

# Reasons of a rejected association (PS3.8, Table 9-21) for which there is a cure of one's own.
_UNKNOWN_CALLING, _UNKNOWN_CALLED = 3, 7
# Result of a rejection that may pass.
_TRANSIENT = 2
_PENDING = (0xFF00, 0xFF01)


class DimseServer:
    """An application entity that takes C-STORE; see `bundle.pacs.server.Server`.

    Args:
        aet: its title.
        host: name or address of its machine.
        port: its port.
        calling_aet: title that it is told.
        tls: whether the connection is encrypted.
        ca_file: PEM file of the certificates that vouch for the server's; None for those that are commonly trusted.

    Raises:
        PacsError: ca_file holds no certificates.
    """

    def __init__(
        self, aet: str, host: str, port: int, calling_aet: str, tls: bool, ca_file: str | os.PathLike[str] | None
    ) -> None:
        self.name = f"{aet} at {host}:{port}"
        self._aet, self._host, self._port, self._calling_aet = aet, host, port, calling_aet
        self._entity = AE(ae_title=calling_aet)
        self._entity.connection_timeout = CONNECT_S
        self._entity.acse_timeout = self._entity.dimse_timeout = self._entity.network_timeout = ANSWER_S
        # Every server knows the second transfer syntax (PS3.5, 10.1).
        self._entity.add_requested_context(
            SecondaryCaptureImageStorage, [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
        )
        self._entity.add_requested_context(FIND)
        self._tls: ssl.SSLContext | None = None
        if tls:
            try:
                self._tls = ssl.create_default_context(cafile=ca_file)
            except OSError as error:  # SSLError is one
                raise PacsError(f"{ca_file} holds no certificates in PEM form. Name the file that does.") from error
        self._association: Association | None = None
        self._answers_searches = True

    def store(self, dataset: Dataset) -> None:
        """See `bundle.pacs.server.Server.store`."""
        association = self._associated()
        try:
            status = association.send_c_store(dataset)
        except RuntimeError as error:  # the association ended in between
            raise self._lost() from error
        if "Status" not in status:
            raise self._lost()
        check_status(self.name, status.Status, str(status.get("ErrorComment", "")))

    def lists(self, instance: Instance) -> bool | None:
        """See `bundle.pacs.server.Server.lists`."""
        association = self._associated()
        if not self._answers_searches or not _takes(association, FIND):
            return None
        wanted = Dataset()
        wanted.QueryRetrieveLevel, wanted.StudyInstanceUID = "STUDY", instance.study
        is_listed = False
        try:
            for status, found in association.send_c_find(wanted, FIND):
                if status.get("Status") in _PENDING:
                    is_listed |= found is not None and found.get("StudyInstanceUID") == instance.study
                elif status.get("Status") == 0:
                    return is_listed
                elif "Status" not in status:
                    self._association = None
        except RuntimeError as error:
            raise self._lost() from error
        # A server that may not be searched says so, or ends the association: then it takes another one.
        self._associated()
        self._answers_searches = False
        return None

    def close(self) -> None:
        """See `bundle.pacs.server.Server.close`."""
        if self._association is not None:
            _end(self._association)

    def _lost(self) -> UnavailableError:
        self._association = None  # it may count as established for another moment
        return UnavailableError(f"{self.name} has ended the connection, or does not answer within {ANSWER_S} seconds")

    def _associated(self) -> Association:
        """Returns the association with the server, a new one where there is none."""
        if self._association is not None and self._association.is_established:
            return self._association
        tls_args = None if self._tls is None else (self._tls, self._host)
        try:
            new = self._entity.associate(self._host, self._port, ae_title=self._aet, tls_args=tls_args)
        except OSError as error:
            raise UnavailableError(f"{self.name} does not answer ({error.strerror or error})") from error
        if new.is_rejected:
            raise self._rejection(new)
        if not new.is_established and not new.rejected_contexts:
            raise self._failure()
        if not _takes(new, SecondaryCaptureImageStorage):
            _end(new)
            raise PacsError(f"{self.name} does not take Secondary Capture images. Ask its administrator.")
        self._association = new
        return new

    def _rejection(self, association: Association) -> PacsError:
        """Returns the error of an association that the server rejected."""
        answer = association.acceptor.primitive
        reason = getattr(answer, "diagnostic", None)
        if reason == _UNKNOWN_CALLED:
            return PacsError(f"The server at {self._host}:{self._port} has another AE title than {self._aet}.")
        if reason == _UNKNOWN_CALLING:
            return PacsError(
                f"{self.name} does not know the AE title {self._calling_aet}. Have it entered there, or give one that "
                "it knows: --calling_aet TITLE."
            )
        words = f"{self.name} rejects the connection ({getattr(answer, 'reason_str', 'for no reason')})"
        is_transient = getattr(answer, "result", None) == _TRANSIENT
        return UnavailableError(words) if is_transient else PacsError(f"{words}. Ask its administrator.")

    def _failure(self) -> PacsError:
        """Returns why there was no answer, by connecting once more; pynetdicom does not tell."""
        try:
            with socket.create_connection((self._host, self._port), CONNECT_S) as plain:
                if self._tls is not None:
                    self._tls.wrap_socket(plain, server_hostname=self._host).close()
        except ssl.SSLError as error:
            return untrusted(self.name, str(error.reason or error))
        except OSError as error:
            return UnavailableError(f"{self.name} does not answer ({error.strerror or error})")
        hint = "" if self._tls else "; a server that wants TLS does so: --tls True"
        return UnavailableError(f"{self.name} ends the connection without an answer{hint}")


def _end(association: Association) -> None:
    if association.is_established:
        association.release()


def _takes(association: Association, sop_class: str) -> bool:
    return any(context.abstract_syntax == sop_class for context in association.accepted_contexts)
