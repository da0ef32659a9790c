# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Servers on loopback ports that store images: small ones of these tests' own, and Orthanc where it is installed."""

from __future__ import annotations

import datetime
import io
import json
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, SecondaryCaptureImageStorage
from pynetdicom import AE, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind as FIND  # type: ignore[attr-defined]

SYNTAXES: list[str] = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
JSON = "application/dicom+json"

Taken = Mapping[str, list[str]]
#: Answers a request in place of the server; True if it did.
Answer = Callable[["Handler"], bool]


class Handler(BaseHTTPRequestHandler):
    """Requests of STOW-RS and QIDO-RS, as far as `send` makes them."""

    protocol_version = "HTTP/1.1"
    server: StowServer

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append(dict(self.headers))
        if self.server.answers and self.server.answers.pop(0)(self):
            return
        if self.path != "/dicom-web/studies":
            self.reply(404)
            return
        self.keep()
        references = [{"00081155": {"vr": "UI", "Value": [uid]}} for uid in self.uids()]
        self.reply(200, {"00081199": {"vr": "SQ", "Value": references}})

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        if address.path != "/dicom-web/studies":
            self.reply(404)
            return
        (wanted,) = parse_qs(address.query)["StudyInstanceUID"]
        self.server.searches.append(wanted)
        known = [str(read(content).StudyInstanceUID) for content in self.server.stored.values()]
        found = [{"0020000D": {"vr": "UI", "Value": [uid]}} for uid in known if uid == wanted]
        self.reply(self.server.search_status, found if self.server.search_status == 200 else None)

    def contents(self) -> list[bytes]:
        """The files of a multipart request."""
        boundary = self.headers.get_param("boundary", header="content-type")
        parts = self.body.split(f"\r\n--{boundary}".encode())[1:-1]
        return [part.partition(b"\r\n\r\n")[2] for part in parts]

    def uids(self) -> list[str]:
        return [str(read(content).SOPInstanceUID) for content in self.contents()]

    def keep(self) -> None:
        for uid, content in zip(self.uids(), self.contents(), strict=True):
            self.server.received.append(uid)
            self.server.stored[uid] = content

    def reply(self, status: int, content: Any = None, media_type: str = JSON, **headers: str) -> None:
        text = b"" if content is None else content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": media_type, "Content-Length": str(len(text)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Writes no log."""


class StowServer(ThreadingHTTPServer):
    """A DICOMweb service in this process.

    Attributes:
        stored: content of each object, by its SOP Instance UID.
        received: the UIDs of all objects in the order of their arrival.
        requests: the headers of all attempts to store.
        searches: the studies that were searched for.
        answers: what answers the next attempts to store, one each.
        search_status: HTTP status of searches.
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.url = f"http{'s' * (context is not None)}://localhost:{self.server_port}/dicom-web"
        self.stored: dict[str, bytes] = {}
        self.received: list[str] = []
        self.requests: list[dict[str, str]] = []
        self.searches: list[str] = []
        self.answers: list[Answer] = []
        self.search_status = 200

    def handle_error(self, *_: Any) -> None:
        """Writes no log of clients that hang up."""


def normally(handler: Handler) -> bool:
    return False


def drop(handler: Handler) -> bool:
    """Ends the connection without storing or answering, like a server that is killed."""
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)
    return True


def store_and_drop(handler: Handler) -> bool:
    """Stores, but is killed before it can say so."""
    handler.keep()
    return drop(handler)


def say(status: int, content: Any = None, media_type: str = JSON, **headers: str) -> Answer:
    """Answers with an HTTP status and stores nothing."""

    def answer(handler: Handler) -> bool:
        handler.reply(status, content, media_type, **headers)
        return True

    return answer


def refuse(status: int, reason: int) -> Answer:
    """Refuses the objects for a reason of DICOM's."""

    def answer(handler: Handler) -> bool:
        items = [
            {"00081155": {"vr": "UI", "Value": [uid]}, "00081197": {"vr": "US", "Value": [reason]}}
            for uid in handler.uids()
        ]
        handler.reply(status, {"00081198": {"vr": "SQ", "Value": items}}, f"{JSON}; charset=utf-8")
        return True

    return answer


@contextmanager
def stow_server(context: ssl.SSLContext | None = None) -> Iterator[StowServer]:
    with StowServer(context) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class StoreServer:
    """An application entity PACS in this process that takes C-STORE and C-FIND.

    Args:
        taken: transfer syntaxes of each SOP class that it takes; None for those that it should.
        context: context of TLS, if connections are encrypted.

    Attributes:
        stored: each object, by its SOP Instance UID.
        received: the UIDs of all objects in the order of their arrival.
        statuses: statuses of the next attempts to store; None ends the association instead.
        find_status: final status of searches; None ends the association instead.
    """

    def __init__(self, taken: Taken | None = None, context: ssl.SSLContext | None = None) -> None:
        self.stored: dict[str, Dataset] = {}
        self.received: list[str] = []
        self.statuses: list[int | None] = []
        self.find_status: int | None = 0
        self.entity = AE(ae_title="PACS")
        self.entity.require_called_aet = True
        for sop_class, syntaxes in (taken or {SecondaryCaptureImageStorage: SYNTAXES, FIND: SYNTAXES}).items():
            self.entity.add_supported_context(sop_class, syntaxes)
        self._context = context
        self.port = 0

    def start(self) -> None:
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_C_FIND, self._find)]
        address = ("127.0.0.1", self.port)
        self._server = self.entity.start_server(address, block=False, evt_handlers=handlers, ssl_context=self._context)  # type: ignore[arg-type]
        assert self._server is not None
        self.port = self._server.server_address[1]

    def stop(self) -> None:
        """Ends all associations and refuses further ones."""
        self.entity.shutdown()

    def _store(self, event: evt.Event) -> int:
        status = self.statuses.pop(0) if self.statuses else 0
        if status is None:
            _hang_up(event)
            return 0
        if status == 0:
            self.received.append(str(event.dataset.SOPInstanceUID))
            self.stored[self.received[-1]] = event.dataset
        return status

    def _find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        if self.find_status is None:
            _hang_up(event)
            return
        for dataset in self.stored.values():
            if self.find_status == 0 and dataset.StudyInstanceUID == event.identifier.StudyInstanceUID:
                yield 0xFF00, event.identifier
        yield self.find_status, None


def _hang_up(event: evt.Event) -> None:
    """Ends a connection without a word, like a server that is killed."""
    connection: Any = event.assoc.dul.socket
    connection.socket.shutdown(socket.SHUT_RDWR)


@contextmanager
def store_server(taken: Taken | None = None, context: ssl.SSLContext | None = None) -> Iterator[StoreServer]:
    server = StoreServer(taken, context)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A PEM file that vouches for localhost, and the context of a server that shows it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hospital")])
    start = datetime.datetime(2020, 1, 1)
    alternatives = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    built = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, start, start + datetime.timedelta(days=36500))
        .add_extension(alternatives, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    public, private = folder / "public.pem", folder / "private.pem"
    public.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, private)
    return public, context


def read(content: bytes) -> Dataset:
    return dcmread(io.BytesIO(content), stop_before_pixels=True)


ORTHANC = shutil.which("Orthanc")
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
USER, PASSWORD = "sender", "secret"


class Orthanc:
    """Orthanc with its DICOMweb plugin, on loopback ports of its own; it asks for a password.

    Args:
        folder: folder of its database.

    Attributes:
        url: address of its DICOMweb service.
        dicom_port: port that takes C-STORE, under the AE title ORTHANC.
    """

    def __init__(self, folder: Path) -> None:
        http_port, self.dicom_port = free_port(), free_port()
        self._home = f"http://127.0.0.1:{http_port}"
        self.url = f"{self._home}/dicom-web"
        self._config = folder / "orthanc.json"
        settings = {
            "StorageDirectory": str(folder / "db"),
            "IndexDirectory": str(folder / "db"),
            "HttpPort": http_port,
            "DicomPort": self.dicom_port,
            "DicomAet": "ORTHANC",
            "DicomCheckCalledAet": True,
            "DicomModalities": {"plan": ["PLAN", "127.0.0.1", 1]},  # who may search
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": True,
            "RegisteredUsers": {USER: PASSWORD},
            "Plugins": [str(PLUGIN)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        self._config.write_text(json.dumps(settings), encoding="utf-8")

    def start(self) -> None:
        """Starts it, on the database that an earlier start has left, and waits until it takes requests."""
        assert ORTHANC is not None
        self._process = subprocess.Popen(
            [ORTHANC, str(self._config)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if "Orthanc has started" in line:
                break
        else:
            raise RuntimeError("Orthanc does not start")
        threading.Thread(target=self._process.stderr.read, daemon=True).start()  # or it would wait for a reader

    def kill(self) -> None:
        """Kills it, as a power failure does."""
        self._process.kill()
        self._process.wait()

    def get(self, path: str, **parameters: Any) -> Any:
        """The answer of its own interface."""
        answer = requests.get(f"{self._home}/{path}", parameters, auth=(USER, PASSWORD), timeout=60)
        answer.raise_for_status()
        return answer.json()

    def arrivals(self) -> list[str]:
        """The objects that it has ever stored, each by the identifier that it gives it."""
        changes = self.get("changes", limit=100_000)
        assert changes["Done"]
        return [change["ID"] for change in changes["Changes"] if change["ChangeType"] == "NewInstance"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port
