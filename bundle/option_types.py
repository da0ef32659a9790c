# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Types of options beyond pydantic's own: choices, paths, devices. Their messages continue the option's name."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

__all__ = [
    "Count",
    "Device",
    "File",
    "Folder",
    "Folders",
    "Integer",
    "OptionalFilePath",
    "OptionalFolder",
    "OutputFolder",
    "Positive",
    "RequiredFile",
    "RequiredFolder",
    "RequiredFolders",
    "Seed",
    "Seeds",
    "Unsigned",
    "closest",
    "one_of",
    "refuse",
]

#: Whole number of at least 0.
Integer = Annotated[int, Field(ge=0, le=2**63 - 1)]
#: Whole number of at least 1.
Count = Annotated[int, Field(ge=1, le=2**63 - 1)]
#: Finite number above 0.
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
#: Finite number of at least 0.
Unsigned = Annotated[float, Field(ge=0, allow_inf_nan=False)]
#: Random seed.
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]


def refuse(message: str) -> PydanticCustomError:
    """Returns the validation error of an option; the message continues the option's name."""
    return PydanticCustomError("option", "{message}", {"message": message})


def closest(word: str, choices: Iterable[str], cutoff: float = 0.0) -> str | None:
    """Returns the choice with the spelling most similar to a word, or None."""
    return next(iter(difflib.get_close_matches(word, list(choices), n=1, cutoff=cutoff)), None)


def _as_number(value: Any) -> float | None:
    """Returns a value as a finite number, or None."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def one_of(choices: Sequence[str | int], other: type | tuple[type, ...] = (), instead: str = "") -> BeforeValidator:
    """Returns a validator that accepts one of ``choices`` or any value of another type.

    Args:
        choices: accepted values, all strings or all numbers.
        other: further accepted types.
        instead: description of values of these types, for the message.
    """

    def check(value: Any) -> Any:
        if isinstance(value, other) or (not isinstance(value, bool) and value in choices):
            return value
        raise refuse(
            f"must be one of {', '.join(map(str, choices))}, not {value!r}. The nearest is {_nearest(value, choices)}."
            + (f" Or give {instead}." if instead else "")
        )

    return BeforeValidator(check)


def _nearest(value: Any, choices: Sequence[str | int]) -> str | int | None:
    numbers = [choice for choice in choices if isinstance(choice, int)]
    number = _as_number(value)
    if numbers and number is not None:
        return min(numbers, key=lambda choice: abs(choice - number))
    return closest(str(value), map(str, choices))


def _as_list(value: Any) -> Any:
    values = list(value) if isinstance(value, list | tuple) else [value]
    if not values or len(set(map(str, values))) < len(values):
        raise refuse(f"must name at least one and none twice, as in [0, 1], not {value!r}.")
    return values


#: One seed or a list of different ones.
Seeds = Annotated[list[Seed], BeforeValidator(_as_list)]


def _unusable_path(value: Any, what: str) -> None:
    """Rejects values that are not paths, and paths that a shell would have to expand."""
    if not isinstance(value, str | os.PathLike):
        raise refuse(f"must be the path of a {what}, not {value!r}.")
    text = os.fspath(value)
    if not text:
        raise refuse("is empty. Name a path, or leave the option out.")
    if text.startswith("~"):
        expanded = str(Path(text).expanduser())
        raise refuse(f"{text!r} begins with ~, which is not expanded here. Write {expanded!r}.")
    if any(not char.isprintable() for char in text):
        raise refuse(f"{text!r} holds characters that cannot be printed. Name a path without them.")


def _present(what: str, is_there: Callable[[Path], bool]) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        _unusable_path(value, what)
        path = Path(value)
        if is_there(path):
            return value
        if path.exists():
            raise refuse(f"{value} is not a {what}. Name a {what}.")
        siblings = [entry.name for entry in path.parent.iterdir() if is_there(entry)] if path.parent.is_dir() else []
        nearest = closest(path.name, siblings, cutoff=0.6)
        hint = f"Did you mean {path.parent / nearest}?" if nearest else f"Name a {what} that does."
        raise refuse(f"{value} does not exist. {hint}")

    return check


_folder = _present("folder", Path.is_dir)
_file = _present("file", Path.is_file)


def _file_path(value: Any) -> Any:
    if value is not None:
        _unusable_path(value, "file")
    return value


def _folders(value: Any) -> Any:
    values = _as_list(value)
    for one in values:
        try:
            _folder(one)
        except PydanticCustomError as error:
            message = error.message()
            if len(values) > 1 and any("::" in str(other) for other in values):
                message += " MONAI reads a # in a list as ::, so name folders without #."
            raise refuse(message) from None
    return value


def _writable(value: Any) -> Any:
    _unusable_path(value, "folder")
    path = Path(value).absolute()
    present = next(folder for folder in (path, *path.parents) if folder.exists())
    if not present.is_dir():
        raise refuse(f"{value} cannot be a folder, because {present} is a file. Name another place.")
    if not os.access(present, os.W_OK | os.X_OK):
        raise refuse(f"{value} cannot be written: no permission in {present}. Name another place.")
    return value


def _device(value: Any) -> Any:
    devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    here = f"This machine has {', '.join([*devices, *['mps'] * torch.backends.mps.is_available(), 'cpu'])}."
    try:
        device = torch.device(value)
    except (RuntimeError, TypeError):
        raise refuse(f"must be the name of a PyTorch device, not {value!r}. {here}") from None
    count = torch.cuda.device_count() if device.type == "cuda" else int(torch.backends.mps.is_available())
    if device.type == "cpu" or (device.type in ("cuda", "mps") and (device.index or 0) < count):
        return value
    raise refuse(f"{value} is not there: PyTorch {torch.__version__} does not find it. {here}")


def _given(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def check_given(value: Any) -> Any:
        if value is None or value == "":
            raise refuse("must be given.")
        return check(value)

    return check_given


#: Existing folder.
Folder = Annotated[Any, AfterValidator(_folder)]
#: Existing folder; required, without a default in the configuration.
RequiredFolder = Annotated[Any, AfterValidator(_given(_folder))]
#: Existing folder or a list of them; None or "" for none.
Folders = Annotated[Any, AfterValidator(lambda value: value if value in (None, "") else _folders(value))]
#: Existing folder or a list of them; required, without a default in the configuration.
RequiredFolders = Annotated[Any, AfterValidator(_given(_folders))]
#: Existing folder; None for none.
OptionalFolder = Annotated[Any, AfterValidator(lambda value: value if value is None else _folder(value))]
#: Existing file; None for none.
File = Annotated[Any, AfterValidator(lambda value: value if value is None else _file(value))]
#: Existing file; required, without a default in the configuration.
RequiredFile = Annotated[Any, AfterValidator(_given(_file))]
#: Path of a file that may be absent, for a command that knows better than "does not exist" why; None for none.
OptionalFilePath = Annotated[Any, AfterValidator(_file_path)]
#: Writable folder that exists or can be created.
OutputFolder = Annotated[Any, AfterValidator(_writable)]
#: Device that PyTorch finds on this machine.
Device = Annotated[Any, AfterValidator(_device)]
