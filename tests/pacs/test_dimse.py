# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, SecondaryCaptureImageStorage
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from bundle.pacs.dimse import DimseServer
from bundle.pacs.server import Instance, PacsError, RefusedError, UnavailableError
from tests.pacs_servers import FIND, SYNTAXES, StoreServer, certificate, free_port, store_server

Objects = list[tuple[Instance, Dataset]]


@contextmanager
def client_of(server: StoreServer, aet: str = "PACS", **options: str) -> Iterator[DimseServer]:
    client = DimseServer(aet, "localhost", server.port, options.get("calling_aet", "PLAN"), False, None)
    try:
        yield client
    finally:
        client.close()


def error_of(client: DimseServer, dataset: Dataset) -> PacsError:
    with pytest.raises(PacsError) as caught:
        client.store(dataset)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_object_arrives_with_its_pixels_and_is_listed_then(objects: Objects, syntax: str) -> None:
    instance, dataset = objects[0]
    taken = {SecondaryCaptureImageStorage: [syntax], FIND: [syntax]}
    with store_server(taken) as server, client_of(server) as client:
        assert client.lists(instance) is False
        client.store(dataset)
        assert client.lists(instance) is True
        assert client.lists(objects[1][0]) is False
    (stored,) = server.stored.values()
    assert stored.SOPInstanceUID == dataset.SOPInstanceUID and stored.PatientID == dataset.PatientID
    stored.file_meta = dataset.file_meta
    assert np.array_equal(stored.pixel_array, dataset.pixel_array)


@pytest.mark.parametrize("status", [0x0111, 0xB000, 0xB007])
def test_warning_and_object_that_is_there_already_count_as_stored(
    store: StoreServer, objects: Objects, status: int
) -> None:
    store.statuses = [status]
    with client_of(store) as client:
        client.store(objects[0][1])
    assert store.statuses == []


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (0xA900, RefusedError, "status 0xA900 (data set does not match its SOP class)"),
        (0x0124, RefusedError, "status 0x0124 (not authorised)"),
        (0xC000, RefusedError, "status 0xC000 (cannot understand)"),
        (0xA701, UnavailableError, "has no room now (status 0xA701 (out of resources))"),
        (None, UnavailableError, "has ended the connection"),
    ],
)
def test_failure_is_explained(
    store: StoreServer, objects: Objects, status: int | None, kind: type[PacsError], words: str
) -> None:
    store.statuses = [status]
    with client_of(store) as client:
        error = error_of(client, objects[0][1])
        assert type(error) is kind
        assert words in str(error)
        client.store(objects[0][1])  # by a new association where the old one has ended
    assert len(store.received) == 1


def test_titles_that_the_server_does_not_know_are_named(store: StoreServer, objects: Objects) -> None:
    with client_of(store, "WRONG") as client:
        assert str(error_of(client, objects[0][1])) == (
            f"The server at localhost:{store.port} has another AE title than WRONG."
        )
    store.entity.require_calling_aet = ["MODALITY1"]
    with client_of(store) as client:
        error = error_of(client, objects[0][1])
        assert type(error) is PacsError
        assert "does not know the AE title PLAN. Have it entered there" in str(error)
    with client_of(store, calling_aet="MODALITY1") as client:
        client.store(objects[0][1])
    assert len(store.received) == 1


@pytest.mark.parametrize("other", [FIND, Verification])
def test_server_that_takes_no_secondary_captures(objects: Objects, other: str) -> None:
    with store_server({other: SYNTAXES}) as server, client_of(server) as client:
        error = error_of(client, objects[0][1])
    assert (
        str(error) == f"PACS at localhost:{server.port} does not take Secondary Capture images. Ask its administrator."
    )


def test_server_that_is_away_or_unknown(objects: Objects) -> None:
    port = free_port()
    error = error_of(DimseServer("PACS", "127.0.0.1", port, "PLAN", False, None), objects[0][1])
    assert type(error) is UnavailableError
    assert str(error) == f"PACS at 127.0.0.1:{port} does not answer (Connection refused)"
    error = error_of(DimseServer("PACS", "nowhere.invalid", port, "PLAN", False, None), objects[0][1])
    assert type(error) is UnavailableError
    assert "does not answer (" in str(error)


def test_server_of_another_kind_ends_the_connection(objects: Objects) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            for _ in range(2):
                listener.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        client = DimseServer("PACS", "127.0.0.1", listener.getsockname()[1], "PLAN", False, None)
        error = error_of(client, objects[0][1])
        thread.join()
    assert type(error) is UnavailableError
    assert "ends the connection without an answer; a server that wants TLS does so: --tls True" in str(error)


def test_server_that_answers_no_searches_says_nothing_of_what_it_has(objects: Objects) -> None:
    with store_server({SecondaryCaptureImageStorage: SYNTAXES}) as server, client_of(server) as client:
        assert client.lists(objects[0][0]) is None
    for status in (0xA900, None):
        with store_server() as server, client_of(server) as client:
            server.find_status = status
            assert client.lists(objects[0][0]) is None
            client.store(objects[0][1])
            server.find_status = 0
            assert client.lists(objects[0][0]) is None  # it is not asked again


def test_search_of_a_server_that_has_stopped_is_no_answer(store: StoreServer, objects: Objects) -> None:
    with client_of(store) as client:
        assert client.lists(objects[0][0]) is False
        store.stop()
        with pytest.raises(UnavailableError):
            client.lists(objects[0][0])


def test_connection_is_encrypted_if_wanted(objects: Objects, tmp_path: Path) -> None:
    ca_file, context = certificate(tmp_path)
    with store_server(context=context) as server:
        message = str(error_of(DimseServer("PACS", "localhost", server.port, "PLAN", True, None), objects[0][1]))
        assert "cannot be trusted (CERTIFICATE_VERIFY_FAILED)" in message
        client = DimseServer("PACS", "localhost", server.port, "PLAN", True, ca_file)
        client.store(objects[0][1])
        client.close()
        assert len(server.stored) == 1
    (tmp_path / "empty.pem").touch()
    with pytest.raises(PacsError, match=r"empty\.pem holds no certificates in PEM form"):
        DimseServer("PACS", "localhost", 104, "PLAN", True, tmp_path / "empty.pem")
