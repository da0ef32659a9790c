# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The command ``send``: stores the images of a cohort in a PACS, and nothing else of it or beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from pydicom import Dataset
from tqdm import tqdm

from bundle.auditing.clearance import passed_audit
from bundle.cohort.contents import cohort_folder
from bundle.cohort.writer import image_names, verify_cohort
from bundle.files import content_digest
from bundle.lock import run_lock
from bundle.markup import printable
from bundle.pacs.objects import CURE, dicom_objects
from bundle.pacs.patience import Patience
from bundle.pacs.record import StoredRecord
from bundle.pacs.server import Instance, PacsError, RefusedError, Server

__all__ = ["Transfer", "send"]

# Number of refused objects after which the others are not tried.
MOST_REFUSED = 10


def send(
    cohort_dir: str | os.PathLike[str],
    server: Server,
    output_dir: str | os.PathLike[str],
    audit_dir: str | os.PathLike[str] | None = None,
    unaudited: bool = False,
    retries: int = 5,
    confirm: bool = True,
) -> None:
    """Stores the images of a cohort in a PACS; the outcome is printed.

    An interrupted transfer resumes: what the server has acknowledged is recorded in ``output_dir`` and, if the server
    still lists it, not sent again.

    Args:
        cohort_dir: folder of the cohort, as its manifest says.
        server: server from `bundle.pacs.server.open_server`.
        output_dir: folder of the records, of which each server has one for all cohorts.
        audit_dir: see `bundle.auditing.clearance.passed_audit`.
        unaudited: whether to send a cohort that has not passed an audit.
        retries: see `bundle.pacs.patience.Patience`.
        confirm: whether to ask the server if it lists what it has acknowledged, earlier and now.

    Raises:
        CohortError: the folder is not as its manifest says, or has not passed an audit.
        PacsError: the server cannot be used, does not answer, refuses images, or lists fewer than it acknowledged.
        InUseError: another run is sending to this server.
        OSError: the record cannot be written.
    """
    folder, output = cohort_folder(cohort_dir), Path(output_dir)
    manifest = verify_cohort(folder, CURE)
    if unaudited:
        print("Whether the cohort has passed an audit is not asked (--unaudited).")
    else:
        print(f"Passed its audit: {printable(str(passed_audit(folder, manifest, audit_dir)))}")
    total = len(image_names(manifest["files"]))
    for _ in tqdm(dicom_objects(folder, manifest), "checking", total, unit="image"):
        pass  # whatever is wrong with one is found before any is sent
    digest = content_digest(server.name, 10)
    with run_lock(output, output / "private" / f"send-{digest}.lock"), closing(server):
        transfer = Transfer(server, StoredRecord(output / f"stored-{digest}.csv"), Patience(retries), total, confirm)
        transfer.run(dicom_objects(folder, manifest))
    listed = " The server lists all of them." if transfer.is_confirmed else ""
    if confirm and not listed:
        listed = " It was not asked what it has, since it answers no searches."
    print(
        f"{total} images of {printable(str(folder))} are stored by {server.name}: {len(transfer.sent)} were sent now, "
        f"{transfer.present} earlier.{listed}\nThe record: {transfer.record.path}"
    )


class Transfer:
    """Stores the objects that a server does not have yet.

    Args:
        server: the server.
        record: record of what it has acknowledged.
        patience: repeats what it does not answer.
        total: number of objects.
        confirm: see `send`.

    Attributes:
        sent: objects that were stored now.
        present: number of objects that the server had already.
        is_confirmed: whether the server was asked for each of these, and lists it; meaningful after `run`.
    """

    def __init__(self, server: Server, record: StoredRecord, patience: Patience, total: int, confirm: bool) -> None:
        self.server, self.record, self.patience, self.total = server, record, patience, total
        self.is_confirmed = confirm
        self.sent: list[Instance] = []
        self.present = 0
        self._refused: dict[str, str] = {}
        # Whether the server may have stored the next object without our knowing, in an earlier run or attempt.
        self._is_in_doubt = True

    def run(self, objects: Iterator[tuple[Instance, Dataset]]) -> None:
        """Sends objects, and asks in the end whether the server lists them.

        Raises:
            PacsError: see `send`.
        """
        try:
            with self._bar("sending", self.total) as bar:
                for instance, dataset in objects:
                    self._send(instance, dataset)
                    bar.update()
                    if len(self._refused) == MOST_REFUSED:
                        break
            unlisted = self._unlisted()
        except PacsError as error:
            raise PacsError(f"{str(error).rstrip('.')}. {self._so_far()}") from error
        if self._refused:
            raise PacsError(self._refusals())
        if unlisted:
            self.record.remove(unlisted)
            raise PacsError(
                f"{self.server.name} has acknowledged all images, but does not list {len(unlisted)} of {self.total}: "
                f"{_names([instance.image for instance in unlisted])}. The same command sends what is still missing "
                "then. For servers that list images late or under other identifiers: --confirm False."
            )

    def _send(self, instance: Instance, dataset: Dataset) -> None:
        if instance in self.record and self._lists(instance) is not False:
            self.present += 1
            return
        try:
            is_new = self.patience(partial(self._store, instance, dataset))
        except RefusedError as error:
            self._refused[instance.image] = str(error)
            return
        self.record.add(instance)
        if is_new:
            self.sent.append(instance)
        else:
            self.present += 1

    def _store(self, instance: Instance, dataset: Dataset) -> bool:
        """Stores an object, or returns False if the server turns out to have it."""
        if self._is_in_doubt and self.is_confirmed:
            listed = self.server.lists(instance)
            self.is_confirmed = listed is not None
            if listed:
                return False
        self._is_in_doubt = True
        self.server.store(dataset)
        self._is_in_doubt = False
        return True

    def _lists(self, instance: Instance) -> bool | None:
        """Returns whether the server lists an object, or None; once it does not tell, it is not asked any more."""
        listed = self.patience(partial(self.server.lists, instance)) if self.is_confirmed else None
        self.is_confirmed = listed is not None
        return listed

    def _unlisted(self) -> list[Instance]:
        """Returns the objects that the server acknowledged now, but does not list after some time."""
        unlisted = self.sent if self.is_confirmed else []
        for number in range(self.patience.retries + 1):
            if not unlisted:
                break
            if number:
                self.patience.pause(number - 1, f"{len(unlisted)} images are not listed yet")
            with self._bar("confirming", len(unlisted)) as bar:
                asked, unlisted = unlisted, []
                for instance in asked:
                    unlisted += [instance] * (self._lists(instance) is False)
                    bar.update()
        return unlisted

    @contextmanager
    def _bar(self, title: str, total: int) -> Iterator[tqdm]:
        with tqdm(total=total, desc=title, unit="image") as bar:
            self.patience.tell = bar.set_postfix_str
            yield bar

    def _so_far(self) -> str:
        stored = len(self.sent) + self.present
        return (
            f"{stored} of {self.total} images are stored. The same command resumes." if stored else "Nothing was sent."
        )

    def _refusals(self) -> str:
        number, reasons = len(self._refused), dict.fromkeys(self._refused.values())
        rest = " The others were not tried." if number == MOST_REFUSED else ""
        return (
            f"{self.server.name} refuses {number} of {self.total} images: {_names([*self._refused])} "
            f"({'; '.join(reasons)}).{rest} {self._so_far()}"
        )


def _names(images: Sequence[str]) -> str:
    return ", ".join(images[:3]) + (" and more" if len(images) > 3 else "")
