# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from bundle.cohort.export import export
from bundle.cohort.ledger import CohortError
from bundle.cohort.writer import verify_cohort, write_cohort
from bundle.lock import InUseError, run_lock
from bundle.pacs import sending
from bundle.pacs.dicomweb import DicomWebServer
from bundle.pacs.dimse import DimseServer
from bundle.pacs.objects import dicom_objects
from bundle.pacs.record import StoredRecord
from bundle.pacs.sending import send
from bundle.pacs.server import Instance, PacsError, Server
from tests.auditing.test_clearance import audited
from tests.cohort.test_writer import change, digest, resealed
from tests.pacs_servers import (
    StoreServer,
    StowServer,
    drop,
    normally,
    refuse,
    say,
    store_and_drop,
    store_server,
)

Sender = Callable[..., None]


@pytest.fixture
def sent(tmp_path: Path) -> Path:
    """Folder of the records."""
    return tmp_path / "sent"


@pytest.fixture
def to_stow(stow: StowServer, cohort: Path, sent: Path) -> Sender:
    """Sends the cohort to a DICOMweb service."""

    def start(**options: object) -> None:
        settings = {"output_dir": sent, "unaudited": True, **options}
        send(cohort, DicomWebServer(stow.url, None, {}), **settings)  # type: ignore[arg-type]

    return start


def failure(start: Sender, **options: object) -> str:
    with pytest.raises(PacsError) as caught:
        start(**options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def uids(cohort: Path) -> list[str]:
    return [instance.uid for instance, _ in dicom_objects(cohort, verify_cohort(cohort))]


@pytest.fixture(params=["STOW-RS", "C-STORE"])
def either(request: pytest.FixtureRequest) -> Iterator[tuple[StowServer | StoreServer, Callable[[], Server]]]:
    """A server, and what makes a client of it."""
    if request.param == "STOW-RS":
        stow: StowServer = request.getfixturevalue("stow")
        yield stow, lambda: DicomWebServer(stow.url, None, {})
    else:
        store: StoreServer = request.getfixturevalue("store")
        yield store, lambda: DimseServer("PACS", "localhost", store.port, "PLAN", False, None)


def test_all_images_and_nothing_else_arrive_once(
    either: tuple[StowServer | StoreServer, Callable[[], Server]],
    cohort: Path,
    sent: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server, new_client = either
    (cohort.parent / "private").mkdir()
    (cohort.parent / "private" / "nearest.csv").touch()
    before = digest(cohort.parent)
    client = new_client()
    send(cohort, client, sent, unaudited=True)
    assert server.received == uids(cohort)
    (record,) = sent.glob("stored-*.csv")
    assert capsys.readouterr().out == (
        "Whether the cohort has passed an audit is not asked (--unaudited).\n"
        f"5 images of {cohort} are stored by {client.name}: 5 were sent now, 0 earlier. The server lists all of them.\n"
        f"The record: {record}\n"
    )
    assert digest(cohort.parent) == before
    send(cohort, new_client(), sent, unaudited=True)
    assert "0 were sent now, 5 earlier. The server lists all of them." in capsys.readouterr().out
    assert server.received == uids(cohort)
    # DICOM files in the cohort are these objects.
    export(cohort, "dicom")
    send(cohort, new_client(), sent, unaudited=True)
    assert server.received == uids(cohort)


@pytest.mark.parametrize("first", range(5))
def test_image_that_was_stored_without_an_answer_is_not_sent_twice(
    stow: StowServer, to_stow: Sender, cohort: Path, first: int, pauses: list[float]
) -> None:
    stow.answers = [*[normally] * first, store_and_drop]
    to_stow()
    assert stow.received == uids(cohort)
    assert pauses == [1]


def test_server_that_comes_back_after_some_time_is_waited_for(
    stow: StowServer, to_stow: Sender, cohort: Path, pauses: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    stow.answers = [normally, drop, say(503), say(500), drop]
    to_stow()
    assert stow.received == uids(cohort)
    assert pauses == [1, 2, 4, 8]
    shown = capsys.readouterr().err
    assert "sending:  20%" in shown and "sending: 100%" in shown and "confirming: 100%" in shown
    assert f"{stow.url} cannot answer now (HTTP 503 Service Unavailable); next attempt in 2 s" in shown


def test_server_that_stays_away_stops_the_transfer_and_the_same_command_resumes(
    stow: StowServer, to_stow: Sender, cohort: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stow.answers = [normally, normally, store_and_drop, *[drop] * 9]
    stow.search_status = 404  # it cannot say that it has the third one
    message = failure(to_stow, retries=2)
    assert message.startswith(f"{stow.url} does not answer (")
    assert message.endswith("). 2 of 5 images are stored. The same command resumes.")
    assert len(stow.received) == 3
    stow.answers, stow.search_status = [], 200
    capsys.readouterr()
    to_stow()
    assert "2 were sent now, 3 earlier. The server lists all of them." in capsys.readouterr().out
    assert stow.received == uids(cohort)


def test_association_that_ends_is_made_anew(store: StoreServer, cohort: Path, sent: Path, pauses: list[float]) -> None:
    store.statuses = [0, None, 0, 0xA700, None]
    send(cohort, DimseServer("PACS", "localhost", store.port, "PLAN", False, None), sent, unaudited=True)
    assert store.received == uids(cohort)
    assert pauses == [1, 1, 2]


def test_program_that_is_killed_resumes(
    stow: StowServer, to_stow: Sender, cohort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """What no handler of errors sees."""

    add = StoredRecord.add

    def add_or_die(self: StoredRecord, instance: Instance) -> None:
        if len(stow.received) == 3:
            raise Killed
        add(self, instance)

    # Between the server's answer and the record: the moment at which most is unknown.
    with monkeypatch.context() as patch:
        patch.setattr(StoredRecord, "add", add_or_die)
        with pytest.raises(Killed):
            to_stow()
    to_stow()
    assert stow.received == uids(cohort)


def test_what_the_server_has_lost_is_sent_again(
    stow: StowServer, to_stow: Sender, cohort: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to_stow()
    lost = uids(cohort)[1:3]
    for uid in lost:
        del stow.stored[uid]
    to_stow()
    assert "2 were sent now, 3 earlier" in capsys.readouterr().out
    assert stow.received == [*uids(cohort), *lost]
    stow.stored.clear()
    to_stow(confirm=False)
    assert "0 were sent now, 5 earlier.\n" in capsys.readouterr().out
    assert len(stow.received) == 7


def test_images_that_are_acknowledged_and_not_listed_are_named_and_sent_again(
    stow: StowServer, to_stow: Sender, cohort: Path, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = uids(cohort)[3]
    keep = sending.DicomWebServer.lists if hasattr(sending, "DicomWebServer") else DicomWebServer.lists
    monkeypatch.setattr(DicomWebServer, "lists", lambda self, instance: instance.uid != hidden and keep(self, instance))
    message = failure(to_stow, retries=2)
    assert message.startswith(
        f"{stow.url} has acknowledged all images, but does not list 1 of 5: images/tuberculosis_000001.png. The same"
    )
    assert pauses == [1, 2]
    monkeypatch.undo()
    to_stow()
    assert sorted(stow.received) == sorted(uids(cohort))


def test_server_without_a_search_is_taken_at_its_word(
    stow: StowServer, to_stow: Sender, cohort: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stow.search_status = 501
    for outcome in ("5 were sent now, 0 earlier", "0 were sent now, 5 earlier"):
        to_stow()
        shown = capsys.readouterr()
        assert f"{outcome}. It was not asked what it has, since it answers no searches." in shown.out
        assert "confirming" not in shown.err
    assert stow.received == uids(cohort)


def test_refused_images_are_named_and_the_others_stored(stow: StowServer, to_stow: Sender, cohort: Path) -> None:
    stow.answers = [normally, refuse(409, 0xA900), normally, refuse(202, 0x0110)]
    assert failure(to_stow) == (
        f"{stow.url} refuses 2 of 5 images: images/normal_000002.png, images/tuberculosis_000001.png (status 0xA900 "
        f"(data set does not match its SOP class); status 0x0110 (processing failure)). 3 of 5 images are stored. The "
        f"same command resumes."
    )
    assert len(stow.received) == 3
    to_stow()
    assert sorted(stow.received) == sorted(uids(cohort))


def test_server_that_refuses_many_is_left_alone(
    stow: StowServer, to_stow: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "MOST_REFUSED", 2)
    stow.answers = [refuse(409, 0x0124)] * 5
    message = failure(to_stow)
    assert message.endswith("(status 0x0124 (not authorised)). The others were not tried. Nothing was sent.")
    assert len(stow.requests) == 2


def test_wrong_address_is_said_at_once(stow: StowServer, cohort: Path, sent: Path, pauses: list[float]) -> None:
    with pytest.raises(PacsError, match=r"does not take images \(HTTP 404 Not Found\).*\. Nothing was sent\."):
        send(cohort, DicomWebServer(stow.url.replace("dicom-web", "wado"), None, {}), sent, unaudited=True)
    assert (pauses, stow.received) == ([], [])


def test_servers_have_records_of_their_own(stow: StowServer, to_stow: Sender, cohort: Path, sent: Path) -> None:
    to_stow()
    with store_server() as server:
        send(cohort, DimseServer("PACS", "localhost", server.port, "PLAN", False, None), sent, unaudited=True)
        assert server.received == uids(cohort)
    assert len(list(sent.glob("stored-*.csv"))) == 2


def test_equal_images_are_one_object(stow: StowServer, sent: Path, tmp_path: Path) -> None:
    image = torch.zeros(16, 16, dtype=torch.uint8)
    write_cohort(tmp_path / "cohort", [(0, image), (0, image)], ("normal",), {}, "")
    send(tmp_path / "cohort", DicomWebServer(stow.url, None, {}), sent, unaudited=True)
    assert len(stow.received) == 1


def test_one_run_at_a_time_sends_to_a_server(stow: StowServer, to_stow: Sender, sent: Path) -> None:
    to_stow()
    (lock,) = (sent / "private").glob("send-*.lock")
    with run_lock(sent, lock), pytest.raises(InUseError, match="is in use: another run works there"):
        to_stow()


def test_what_was_not_audited_is_not_sent(
    stow: StowServer, to_stow: Sender, cohort: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(cohort.parent)
    with pytest.raises(CohortError, match="No audit of this cohort was found"):
        to_stow(unaudited=False)
    audit = audited(cohort.parent / "audit", cohort)
    to_stow(unaudited=False)
    assert f"Passed its audit: {audit}\n" in capsys.readouterr().out
    change(cohort / "images" / "normal_000001.png")
    resealed(cohort)
    with pytest.raises(CohortError, match="judged other images or labels than the cohort has now"):
        to_stow(unaudited=False, audit_dir=audit)
    assert len(stow.received) == 5


def test_folder_that_is_not_as_its_manifest_says_is_not_sent(
    stow: StowServer, to_stow: Sender, cohort: Path, sent: Path
) -> None:
    change(cohort / "images" / "normal_000001.png")
    with pytest.raises(CohortError, match=r"was changed\. Only a cohort as it was generated or received can be sent"):
        to_stow()
    with pytest.raises(CohortError, match="holds a cohort and, beside it, what is private"):
        send(cohort.parent, DicomWebServer(stow.url, None, {}), sent, unaudited=True)
    assert (stow.requests, sent.exists()) == ([], False)


def test_one_file_that_cannot_be_sent_keeps_all_others_back(stow: StowServer, to_stow: Sender, cohort: Path) -> None:
    export(cohort, "dicom")
    other = (cohort / "dicom" / "normal_000001.dcm").read_bytes()
    (cohort / "dicom" / "tuberculosis_000002.dcm").write_bytes(other)
    resealed(cohort)
    with pytest.raises(CohortError, match=r"tuberculosis_000002\.dcm does not show its image"):
        to_stow()
    assert stow.requests == []
