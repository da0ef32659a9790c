# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The guard in front of every command: options that do not exist or cannot be are refused before any work is done.

MONAI takes ``--sed 7`` for a new configuration item and runs with the default seed. So the first expression of every
run id calls `check_options`, which looks up the stack for the call of ``monai.bundle.run`` (the command line ends there
as well) and compares the overrides it was given with the ids of its configuration files.
"""

from __future__ import annotations

import copy
import difflib
import inspect
import logging
import math
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn, Protocol

import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.reference_resolver import ReferenceResolver
from monai.bundle.scripts import run, run_workflow, update_kwargs
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS, ID_SEP_KEY

from bundle.failures import Terminated, machine_failure
from bundle.markup import printable

__all__ = [
    "Choice",
    "Device",
    "Either",
    "File",
    "Flag",
    "Folder",
    "Folders",
    "Integer",
    "Integers",
    "Kind",
    "Number",
    "OptionError",
    "OutputFolder",
    "Several",
    "check_options",
    "plain_errors",
]


class OptionError(ValueError):
    """Options that do not exist or have impossible values; the message names each one, and the nearest valid one.

    Whoever calls ``monai.bundle.run`` from Python finds it as the cause of the RuntimeError that MONAI raises.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class Kind(Protocol):
    """What values an option takes."""

    def problem(self, value: Any) -> str | None:
        """Returns what is wrong with ``value`` and the nearest valid one, to follow the option's name; else None."""


@dataclass(frozen=True)
class Integer:
    """A whole number from ``least`` to ``most``."""

    least: int
    most: int = 2**63 - 1

    def problem(self, value: Any) -> str | None:
        """See `Kind.problem`."""
        if isinstance(value, int) and not isinstance(value, bool) and self.least <= value <= self.most:
            return None
        bounds = f"of at least {self.least}" if self.most == 2**63 - 1 else f"from {self.least} to {self.most}"
        near = _as_number(value)
        nearest = "" if near is None else f" The nearest is {min(max(round(near), self.least), self.most)}."
        return f"must be a whole number {bounds}, not {value!r}.{nearest}"


@dataclass(frozen=True)
class Integers:
    """Different whole numbers from ``least`` to ``most``, in a list or alone."""

    least: int
    most: int = 2**63 - 1

    def problem(self, value: Any) -> str | None:
        """See `Kind.problem`."""
        values = list(value) if isinstance(value, list | tuple) else [value]
        if not values or len(set(map(str, values))) < len(values):
            return f"must name at least one whole number and none twice, as in [0, 1], not {value!r}."
        return next(filter(None, map(Integer(self.least, self.most).problem, values)), None)


@dataclass(frozen=True)
class Number:
    """A finite number above ``above`` (or equal to it, where ``or_equal``) and at most ``most``."""

    above: float
    most: float = math.inf
    or_equal: bool = False

    def problem(self, value: Any) -> str | None:
        """See `Kind.problem`."""
        number = None if isinstance(value, str) else _as_number(value)
        if number is not None and (self.above < number <= self.most or (self.or_equal and number == self.above)):
            return None
        bounds = f"of at least {self.above:g}" if self.or_equal else f"above {self.above:g}"
        bounds += f" and at most {self.most:g}" if self.most < math.inf else ""
        near, nearest = _as_number(value), ""
        if near is not None and near > self.most:
            nearest = f" The nearest is {self.most:g}."
        elif near is not None and self.or_equal and near < self.above:
            nearest = f" The nearest is {self.above:g}."
        return f"must be a number {bounds}, not {value!r}.{nearest}"


@dataclass(frozen=True)
class Choice:
    """One of ``choices``, all words or all numbers."""

    choices: tuple[str | int, ...]

    def problem(self, value: Any) -> str | None:
        """See `Kind.problem`."""
        if not isinstance(value, bool) and isinstance(value, str | int) and value in self.choices:
            return None
        return f"must be one of {', '.join(map(str, self.choices))}, not {value!r}. {self._nearest(value)}"

    def _nearest(self, value: Any) -> str:
        numbers = [choice for choice in self.choices if isinstance(choice, int)]
        number = _as_number(value)
        if numbers and number is not None:
            return f"The nearest is {min(numbers, key=lambda choice: abs(choice - number))}."
        return f"The nearest is {_closest(str(value), map(str, self.choices))}."


@dataclass(frozen=True)
class Several:
    """Different ones of ``choices``, in a list or alone."""

    choices: tuple[str | int, ...]

    def problem(self, value: Any) -> str | None:
        """See `Kind.problem`."""
        values = list(value) if isinstance(value, list | tuple) else [value]
        if not values or len(set(map(str, values))) < len(values):
            return f"must name at least one of {', '.join(map(str, self.choices))} and none twice, not {value!r}."
        return next(filter(None, map(Choice(self.choices).problem, values)), None)


@dataclass(frozen=True)
class Flag:
    """True or False; the option's name alone stands for True."""

    def problem(self, value: Any) -> str | None:
        """See `Kind.problem`."""
        return None if isinstance(value, bool) else f"must be True or False, not {value!r}."


@dataclass(frozen=True)
class Folder:
    """A folder that is there."""

    def problem(self, value: Any) -> str | None:
        """See `Kind.problem`."""
        return _path_problem(value, "folder", Path.is_dir)


@dataclass(frozen=True)
class Folders:
    """A folder that is there, or a list of some."""

    def problem(self, value: Any) -> str | None:
        """See `Kind.problem`."""
        values = list(value) if isinstance(value, list | tuple) else [value]
        problem = next(filter(None, map(Folder().problem, values)), None)
        if problem and len(values) > 1 and any("::" in str(one) for one in values):
            problem += " MONAI reads a # in a list as ::, so name folders without #."
        return problem


@dataclass(frozen=True)
class Either:
    """One of ``choices``, or a value of another type, described by ``what``."""

    choices: tuple[str | int, ...]
    type: type
    what: str

    def problem(self, value: Any) -> str | None:
        """See `Kind.problem`."""
        if isinstance(value, self.type):
            return None
        problem = Choice(self.choices).problem(value)
        return None if problem is None else f"{problem} Or give {self.what}."


@dataclass(frozen=True)
class File:
    """A file that is there."""

    def problem(self, value: Any) -> str | None:
        """See `Kind.problem`."""
        return _path_problem(value, "file", Path.is_file)


@dataclass(frozen=True)
class OutputFolder:
    """A folder that is there and may be written, or that can be made."""

    def problem(self, value: Any) -> str | None:
        """See `Kind.problem`."""
        if not isinstance(value, str | os.PathLike):
            return f"must be the path of a folder, not {value!r}."
        if problem := _unusable_path(value):
            return problem
        path = Path(value).absolute()
        present = next(folder for folder in (path, *path.parents) if folder.exists())
        if not present.is_dir():
            return f"{value} cannot be a folder, because {present} is a file. Name another place."
        if not os.access(present, os.W_OK | os.X_OK):
            return f"{value} cannot be written: no permission in {present}. Name another place."
        return None


@dataclass(frozen=True)
class Device:
    """A device that PyTorch finds on this machine."""

    def problem(self, value: Any) -> str | None:
        """See `Kind.problem`."""
        try:
            device = torch.device(value)
        except (RuntimeError, TypeError):
            return f"must be the name of a PyTorch device, not {value!r}. {self._here()}"
        if device.type == "cpu":
            return None
        count = torch.cuda.device_count() if device.type == "cuda" else int(torch.backends.mps.is_available())
        if device.type in ("cuda", "mps") and (device.index or 0) < count:
            return None
        return f"{value} is not there: PyTorch {torch.__version__} does not find it. {self._here()}"

    def _here(self) -> str:
        devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        devices += ["mps"] * torch.backends.mps.is_available()
        return f"This machine has {', '.join([*devices, 'cpu'])}."


def check_options(kinds: Mapping[str, Kind], values: Mapping[str, Any], required: Iterable[str] = ()) -> None:
    """Refuses overrides that no configuration file knows, and values that cannot be.

    Where ``python -m monai.bundle`` is running, the message goes to stderr and the exit code is 2, without a traceback.
    There, every later error of the bundle's own types, which say what is wrong and the cure, is shown as plainly, with
    exit code 1, and so are a full disk, memory that is used up and the like; with 130, whoever presses Ctrl-C reads how
    to continue (143: SIGTERM). The traceback is kept for what nobody foresaw.

    Args:
        kinds: what each option may be, by its name.
        values: the options of this command as they stand, overrides included. None means "not given", and so does ""
            where a folder is wanted that must be there.
        required: names among ``values`` that must be given.

    Raises:
        OptionError: at least one option is refused; all problems are listed.
        SystemExit: with code 2, in its place on the command line.
        KeyError: an option of ``values`` has no kind; a mistake in the configuration file.
    """
    if _is_command_line():
        sys.excepthook = _show_cure
        logging.getLogger("ignite.engine").setLevel(logging.CRITICAL)  # else it reports, in its words, what we show
        _heed_termination()
    problems: list[str] = []
    if (call := _call_of_monai()) is not None:
        values = {**values, **_restore_options(call)}
        problems += [*_unknown_options(call, list(values)), *_vain_overlays(call)]
    required = set(required)
    for name, value in values.items():
        kind = kinds[name]
        if value is None or (value == "" and isinstance(kind, Folder | Folders)):
            problem = "must be given." if name in required else None
        else:
            problem = kind.problem(value)
        if problem:
            problems.append(f"--{name} {problem}")
    if problems and _is_command_line():
        for problem in problems:
            _print_error(problem)
        raise SystemExit(2)
    if problems:
        raise OptionError(problems)


@contextmanager
def plain_errors(*foreseen: type[Exception]) -> Iterator[None]:
    """Ends a command with the message alone of an error that is the bundle's own, the machine's or the user's.

    Args:
        foreseen: further types whose message is enough.

    Raises:
        SystemExit: in the place of such an error, with the exit code that `check_options` names. Others pass as they
            are, for the sake of their traceback.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        shown = (str(error), 1) if isinstance(error, foreseen) else _plain(error)
        if shown is None:
            raise
        _print_error(shown[0])
        raise SystemExit(shown[1]) from error


def _is_command_line() -> bool:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec is not None and spec.name == "monai.bundle.__main__"


def _heed_termination() -> None:
    # PyTorch's launcher ends processes that wait for each other by this signal; they would hear of it too late.
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if alone and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def _show_cure(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    shown = _plain(error)
    if shown is None:
        sys.__excepthook__(kind, error, traceback)
        return
    _print_error(shown[0])
    if shown[1] != 1:
        raise SystemExit(shown[1])


def _plain(error: BaseException) -> tuple[str, int] | None:
    """Message and exit code of an error whose traceback says no more to a user."""
    own = _own_error(error)
    return machine_failure(error) if own is None else (str(own), 1)


def _print_error(message: str) -> None:
    print(f"error: {printable(message, keep=chr(10))}", file=sys.stderr)


def _own_error(error: BaseException) -> BaseException | None:
    # MONAI wraps whatever an expression or a component raises in RuntimeErrors.
    cause: BaseException | None = error
    while cause is not None and not (
        type(cause).__module__.startswith(f"{__package__}.") and isinstance(cause, Exception)
    ):
        cause = cause.__cause__
    return cause


def _call_of_monai() -> dict[str, Any] | None:
    """Returns the arguments of the innermost `monai.bundle.run` (or run_workflow) on the stack, args_file merged in."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code not in (run.__code__, run_workflow.__code__):
        frame = frame.f_back
    if frame is None:
        return None
    given = inspect.getargvalues(frame)
    arguments = {name: given.locals[name] for name in given.args if name != "args_file"}
    # MONAI changes a dictionary given as args_file.
    return update_kwargs(copy.deepcopy(given.locals["args_file"]), **arguments, **given.locals[str(given.keywords)])


def _restore_options(call: Mapping[str, Any]) -> dict[str, Any]:
    """Puts back what MONAI has changed in the values of options, and returns them by name.

    MONAI takes every # in a value for its older sign between the parts of an id, and writes :: in its place; a folder
    may be called so.
    """
    workflow = _running_workflow()
    if workflow is None:
        return {}
    resolver = workflow.parser.ref_resolver
    changed = {
        name: value
        for name, value in call.items()
        if isinstance(value, str) and "#" in value and value[0] not in "@%$"  # no reference, macro or expression
        if name in resolver.items and resolver.items[name].get_config() != value
    }
    if changed:
        workflow.parser.parse(reset=True)  # forgets what was made from the changed values
        for name, value in changed.items():
            resolver.items[name].update_config(value)
            resolver.resolved_content[name] = value
    return changed


def _running_workflow() -> ConfigWorkflow | None:
    """Returns the innermost workflow of MONAI on the stack."""
    frame = inspect.currentframe()
    while frame is not None:
        if isinstance(workflow := frame.f_locals.get("self"), ConfigWorkflow):
            return workflow
        frame = frame.f_back
    return None


def _unknown_options(call: Mapping[str, Any], options: list[str]) -> Iterator[str]:
    if call.get("config_file") is None:
        return
    own = {*inspect.signature(run).parameters, *inspect.signature(ConfigWorkflow).parameters, "workflow_name"}
    own -= {"override", "kwargs"}
    config = ConfigParser(ConfigParser.load_config_files(call["config_file"]))
    tracking = call.get("tracking")
    if tracking is not None:
        is_default = isinstance(tracking, str) and tracking in DEFAULT_EXP_MGMT_SETTINGS
        settings: dict[str, Any] = (
            DEFAULT_EXP_MGMT_SETTINGS[tracking] if is_default else ConfigParser.load_config_files(tracking)
        )
        own |= settings["configs"].keys() - settings["handlers_id"].keys()
    files = call["config_file"] if isinstance(call["config_file"], str) else ", ".join(map(str, call["config_file"]))
    for name in call:
        if name not in own and name not in config:
            nearest = _closest(name, [*options, *own], cutoff=0.6) or _closest(name, _all_ids(config.get()))
            yield f"--{name} is not an option of {files}. Did you mean --{nearest}? It has: {', '.join(options)}."
    for name in ("init_id", "final_id"):
        if call.get(name) is not None and call[name] not in config:
            yield f"{call[name]!r} is not an id of {files}. Give options as --name value, and one run id at most."


def _vain_overlays(call: Mapping[str, Any]) -> Iterator[str]:
    # Of two files that set the same, the later counts: an overlay in front of what it is to change does nothing.
    if not isinstance(call.get("config_file"), list | tuple):
        return
    files = list(map(str, call["config_file"]))
    contents = [ConfigParser.load_config_file(file) for file in files]
    base = next((index for index, content in enumerate(contents) if (call.get("run_id") or "run") in content), 0)
    for file, content in zip(files[:base], contents, strict=False):
        lost = [name for name, value in content.items() if contents[base].get(name, value) != value]
        if lost:
            yield (
                f"{file} sets {', '.join(lost)} in vain: {files[base]}, which stands behind it, sets the same. Name "
                f"{file} behind {files[base]}."
            )


def _all_ids(config: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(config, dict | list):
        for _, name, value in ReferenceResolver.iter_subconfigs(id=prefix, config=config):
            yield name.replace(ID_SEP_KEY, "#")
            yield from _all_ids(value, name)


def _closest(word: str, choices: Iterable[str], cutoff: float = 0.0) -> str | None:
    return next(iter(difflib.get_close_matches(word, list(choices), n=1, cutoff=cutoff)), None)


def _as_number(value: Any) -> float | None:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _unusable_path(value: str | os.PathLike[str]) -> str | None:
    """Says what no folder or file can be called, or what a shell would have to replace first."""
    text = os.fspath(value)
    if not text:
        return "is empty. Name a path, or leave the option out."
    if text.startswith("~"):
        return f"{text!r} begins with ~, which is not expanded here. Write {str(Path(text).expanduser())!r}."
    if any(not char.isprintable() for char in text):
        return f"{text!r} holds characters that cannot be printed. Name a path without them."
    return None


def _path_problem(value: Any, what: str, is_there: Any) -> str | None:
    if not isinstance(value, str | os.PathLike):
        return f"must be the path of a {what}, not {value!r}."
    if problem := _unusable_path(value):
        return problem
    path = Path(value)
    if is_there(path):
        return None
    if path.exists():
        return f"{value} is not a {what}. Name a {what}."
    siblings = [entry.name for entry in path.parent.iterdir() if is_there(entry)] if path.parent.is_dir() else []
    nearest = _closest(path.name, siblings, cutoff=0.6)
    return f"{value} does not exist." + (
        f" Did you mean {path.parent / nearest}?" if nearest else f" Name a {what} that does."
    )
