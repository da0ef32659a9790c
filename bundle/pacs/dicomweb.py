# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Storage by STOW-RS and search by QIDO-RS (DICOM PS3.18, 10.5 and 10.6), by way of dicomweb-client."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import requests
from dicomweb_client.web import DICOMwebClient
from pydicom import Dataset
from requests.auth import HTTPBasicAuth

from bundle.failures import chain
from bundle.pacs.server import (
    ANSWER_S,
    CONNECT_S,
    Instance,
    PacsError,
    RefusedError,
    UnavailableError,
    check_status,
    untrusted,
)

__all__ = ["DicomWebServer"]

#: Environment variables with the user and password, or the bearer token, that the server asks for.
USER, PASSWORD, TOKEN = "DICOMWEB_USER", "DICOMWEB_PASSWORD", "DICOMWEB_TOKEN"

# HTTP codes of failures that may pass (request timeout, too many requests, all of the server but 501 and 505), and of
# those that concern one object.
_PASSING = {408, 425, 429, *range(500, 600)} - {501, 505}
_OF_OBJECT = (400, 409, 413, 415, 422)
_STUDY_UID = "0020000D"
# What the client raises for answers of another form.
_OTHER_FORM = (ValueError, TypeError, KeyError, IndexError, AttributeError, SyntaxError)


class DicomWebServer:
    """A DICOMweb service; see `bundle.pacs.server.Server`.

    Requests go to the address alone: no proxy or password of the environment (``http_proxy``, ``.netrc``) is used, and
    no redirection is followed.

    Args:
        url: address of the service, such as http://localhost:8042/dicom-web.
        ca_file: PEM file of the certificates that vouch for the server's; None for those that are commonly trusted.
        environment: environment variables, of which `USER`, `PASSWORD` and `TOKEN` are read.

    Raises:
        PacsError: ca_file cannot be read, or only one of user and password is set.
    """

    def __init__(self, url: str, ca_file: str | os.PathLike[str] | None, environment: Mapping[str, str]) -> None:
        self.name = url.rstrip("/")
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.max_redirects = 0
        self._session.verify = True if ca_file is None else os.fspath(ca_file)
        # JSON also says which objects were refused where the client does not read the answer.
        self._session.headers["Accept"] = "application/dicom+json"
        self._authorise(environment)
        self._client = DICOMwebClient(
            self.name, session=self._session, callback=_with_plain_type, timeout=(CONNECT_S, ANSWER_S)
        )
        self._client.host = urlsplit(self.name).netloc  # it leaves the port out of the header Host
        self._client.set_http_retry_params(retry=False)  # it would not repeat what fails without an answer

    def store(self, dataset: Dataset) -> None:
        """See `bundle.pacs.server.Server.store`."""
        with self._explained():
            try:
                answer = self._client.store_instances([dataset])
            except requests.HTTPError as error:
                answer = _refusal(error)
            self._check(answer, dataset.SOPInstanceUID)

    def lists(self, instance: Instance) -> bool | None:
        """See `bundle.pacs.server.Server.lists`."""
        try:
            with self._explained():
                # Searched among all studies: of a study that is not there, some servers say that the address is wrong.
                found = self._client.search_for_studies(search_filters={"StudyInstanceUID": instance.study})
                return any(entry[_STUDY_UID]["Value"][0] == instance.study for entry in found)
        except UnavailableError:
            raise
        except PacsError:
            return None

    def close(self) -> None:
        """See `bundle.pacs.server.Server.close`."""
        self._session.close()

    def _authorise(self, environment: Mapping[str, str]) -> None:
        user, password, token = (environment.get(name) for name in (USER, PASSWORD, TOKEN))
        if bool(user) != bool(password):
            raise PacsError(f"Set both of the environment variables {USER} and {PASSWORD}, or neither.")
        if user and password:
            self._session.auth = HTTPBasicAuth(user.encode(), password.encode())
        elif token:
            self._session.headers["Authorization"] = f"Bearer {token}"

    def _check(self, answer: Dataset, uid: str) -> None:
        """Raises an error unless the answer says that the object was stored."""
        for item in answer.get("FailedSOPSequence") or ():
            if item.get("ReferencedSOPInstanceUID", uid) == uid:
                check_status(self.name, item.FailureReason)
                return
        if uid not in [item.ReferencedSOPInstanceUID for item in answer.get("ReferencedSOPSequence") or ()]:
            raise PacsError(
                f"{self.name} answers without saying that it stored the image. Name the address of its DICOMweb "
                "service (Orthanc's ends with /dicom-web)."
            )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Raises the errors of `bundle.pacs.server.Server` in place of the client's."""
        try:
            yield
        except PacsError:
            raise
        except requests.HTTPError as error:
            assert error.response is not None
            raise self._of_answer(error.response) from error
        except requests.exceptions.SSLError as error:
            raise untrusted(self.name, _reason(error)) from error
        except requests.TooManyRedirects as error:
            place = "" if error.response is None else error.response.headers.get("Location", "")
            raise PacsError(f"{self.name} refers to another address, {place}. If it is right, name it.") from error
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            raise UnavailableError(f"{self.name} does not answer ({_reason(error)})") from error
        except _OTHER_FORM as error:
            raise PacsError(
                f"{self.name} gives no answer of a DICOMweb service. Name the address of one (Orthanc's ends with "
                "/dicom-web)."
            ) from error
        except (requests.RequestException, OSError) as error:  # OSError: ca_file cannot be read
            raise PacsError(f"{self.name} cannot be used: {_reason(error)}.") from error

    def _of_answer(self, response: requests.Response) -> PacsError:
        """Returns the error that an HTTP status means."""
        code, status = response.status_code, f"HTTP {response.status_code} {response.reason or ''}".strip()
        if code == 401:
            return PacsError(
                f"{self.name} asks who sends ({status}). Set the environment variables {USER} and {PASSWORD}, or "
                f"{TOKEN}; if they are set, they are wrong."
            )
        if code == 403:
            return PacsError(f"{self.name} does not let this user store images ({status}). Ask its administrator.")
        if code in _PASSING:
            return UnavailableError(f"{self.name} cannot answer now ({status})")
        if code in _OF_OBJECT:
            return RefusedError(status)
        return PacsError(
            f"{self.name} does not take images ({status}). Name the address of its DICOMweb service (Orthanc's ends "
            "with /dicom-web)."
        )


def _refusal(error: requests.HTTPError) -> Dataset:
    """Returns the answer that says which objects were refused, or raises the error again if there is none."""
    try:
        assert error.response is not None
        answer = Dataset.from_json(error.response.json())
    except _OTHER_FORM:
        raise error from None
    if error.response.status_code not in _OF_OBJECT or "FailedSOPSequence" not in answer:
        raise error
    return answer


def _with_plain_type(response: requests.Response, *_: Any, **__: Any) -> requests.Response:
    """Removes parameters from an answer's media type, without which the client does not recognise it."""
    response.headers["Content-Type"] = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return response


def _reason(error: requests.RequestException | OSError) -> str:
    """Returns the words of the system in the chain of causes of an error, or else those of the first cause."""
    if isinstance(error, requests.exceptions.ReadTimeout):
        return f"no answer within {ANSWER_S} seconds"
    causes = list(chain(error))
    words = [str(cause.strerror) for cause in causes if isinstance(cause, OSError) and cause.strerror]
    return words[-1] if words else str(causes[-1])
