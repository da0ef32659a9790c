# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from pydicom import Dataset, dcmwrite

from bundle.pacs.dicomweb import DicomWebServer
from bundle.pacs.server import Instance, PacsError, RefusedError, UnavailableError
from tests.pacs_servers import Answer, StowServer, certificate, drop, free_port, refuse, say, stow_server

Objects = list[tuple[Instance, Dataset]]
NOT_DICOMWEB = "Orthanc's ends with /dicom-web"


def client_of(server: StowServer, **environment: str) -> DicomWebServer:
    return DicomWebServer(server.url, None, environment)


def error_of(client: DicomWebServer, dataset: Dataset) -> PacsError:
    with pytest.raises(PacsError) as caught:
        client.store(dataset)
    assert "\n" not in str(caught.value)
    return caught.value


def test_object_arrives_bit_for_bit_and_is_listed_then(stow: StowServer, objects: Objects) -> None:
    client = client_of(stow)
    instance, dataset = objects[0]
    assert client.lists(instance) is False
    client.store(dataset)
    assert client.lists(instance) is True
    assert client.lists(objects[1][0]) is False
    content = io.BytesIO()
    dcmwrite(content, dataset)
    assert stow.stored == {instance.uid: content.getvalue()}
    assert stow.requests[0]["Host"] == f"localhost:{stow.server_port}"
    client.close()


def test_object_that_the_server_has_already_counts_as_stored(stow: StowServer, objects: Objects) -> None:
    stow.answers = [refuse(409, 0x0111), refuse(200, 0x0111)]
    client = client_of(stow)
    client.store(objects[0][1])
    client.store(objects[0][1])
    assert len(stow.requests) == 2


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (drop, UnavailableError, "does not answer (Remote end closed connection without response)"),
        (say(503), UnavailableError, "cannot answer now (HTTP 503 Service Unavailable)"),
        (say(500), UnavailableError, "cannot answer now (HTTP 500 Internal Server Error)"),
        (say(429), UnavailableError, "cannot answer now (HTTP 429 Too Many Requests)"),
        (refuse(409, 0xA700), UnavailableError, "has no room now (status 0xA700 (out of resources))"),
        (refuse(409, 0xA900), RefusedError, "status 0xA900 (data set does not match its SOP class)"),
        (refuse(202, 0x0122), RefusedError, "status 0x0122 (SOP class not supported)"),
        (refuse(200, 0xC123), RefusedError, "status 0xC123 (cannot understand)"),
        (refuse(400, 0x0999), RefusedError, "status 0x0999"),
        (say(409), RefusedError, "HTTP 409 Conflict"),
        (say(413, b"<html>", "text/html"), RefusedError, "HTTP 413 "),
        (say(401), PacsError, "asks who sends (HTTP 401 Unauthorized). Set the environment variables DICOMWEB_USER"),
        (say(403), PacsError, "does not let this user store images (HTTP 403 Forbidden)"),
        (say(404), PacsError, "does not take images (HTTP 404 Not Found). Name the address of its DICOMweb service ("),
        (say(501), PacsError, "does not take images (HTTP 501 Not Implemented)"),
        (say(200, b"<html>", "text/html"), PacsError, NOT_DICOMWEB),
        (say(200, b"{", "application/json"), PacsError, NOT_DICOMWEB),
        (say(200, []), PacsError, NOT_DICOMWEB),
        (say(200, {"00081199": {"vr": "SQ", "Value": []}}), PacsError, "without saying that it stored the image"),
        (say(200), PacsError, "without saying that it stored the image"),
        (say(301, Location="http://elsewhere/studies"), PacsError, "refers to another address, http://elsewhere/"),
    ],
)
def test_failure_is_explained(
    stow: StowServer, objects: Objects, answer: Answer, kind: type[PacsError], words: str
) -> None:
    stow.answers = [answer]
    error = error_of(client_of(stow), objects[0][1])
    assert type(error) is kind
    assert words in str(error)
    assert stow.stored == {}


def test_server_that_is_away_or_unknown(objects: Objects) -> None:
    port = free_port()
    error = error_of(DicomWebServer(f"http://127.0.0.1:{port}/dicom-web/", None, {}), objects[0][1])
    assert type(error) is UnavailableError
    assert str(error) == f"http://127.0.0.1:{port}/dicom-web does not answer (Connection refused)"
    error = error_of(DicomWebServer("http://nowhere.invalid", None, {}), objects[0][1])
    assert type(error) is UnavailableError
    assert str(error).startswith("http://nowhere.invalid does not answer (")


@pytest.mark.parametrize(
    ("environment", "header"),
    [
        ({"DICOMWEB_USER": "me", "DICOMWEB_PASSWORD": "pä"}, "Basic " + base64.b64encode("me:pä".encode()).decode()),
        ({"DICOMWEB_TOKEN": "abc"}, "Bearer abc"),
        ({"http_proxy": "http://127.0.0.1:9"}, None),
    ],
)
def test_environment_says_who_sends_and_not_which_way(
    stow: StowServer, objects: Objects, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], header: str | None
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    client_of(stow, **environment).store(objects[0][1])
    assert [request.get("Authorization") for request in stow.requests] == [header]


def test_user_without_a_password_is_refused() -> None:
    with pytest.raises(PacsError, match="Set both of the environment variables DICOMWEB_USER and DICOMWEB_PASSWORD"):
        DicomWebServer("http://localhost", None, {"DICOMWEB_USER": "me"})


@pytest.mark.parametrize("status", [400, 401, 403, 404, 501, 204])
def test_server_that_answers_no_searches_says_nothing_of_what_it_has(
    stow: StowServer, objects: Objects, status: int
) -> None:
    stow.search_status = status
    assert client_of(stow).lists(objects[0][0]) is (False if status == 204 else None)


def test_search_of_a_server_that_is_away_is_no_answer(stow: StowServer, objects: Objects) -> None:
    stow.search_status = 503
    with pytest.raises(UnavailableError):
        client_of(stow).lists(objects[0][0])


def test_certificate_of_the_hospitals_own_is_trusted_where_it_is_named(objects: Objects, tmp_path: Path) -> None:
    ca_file, context = certificate(tmp_path)
    with stow_server(context) as server:
        message = str(error_of(client_of(server), objects[0][1]))
        assert "cannot be trusted (" in message and "certificate verify failed" in message
        assert message.endswith("name its PEM file: --ca_file FILE.")
        assert server.stored == {}
        DicomWebServer(server.url, ca_file, {}).store(objects[0][1])
        assert len(server.stored) == 1
    no_certificate = tmp_path / "empty.pem"
    no_certificate.touch()
    assert isinstance(error_of(DicomWebServer(server.url, no_certificate, {}), objects[0][1]), PacsError)
