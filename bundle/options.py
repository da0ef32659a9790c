# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Validation of a command's options before any work is done.

MONAI accepts ``--sed 7`` as a new configuration item and runs with the default seed. Therefore the first expression of
every run id calls `check_options`, which finds the call of ``monai.bundle.run`` on the stack (also on the command
line), compares its overrides with the ids of its configuration files, and reads the options from the parser; as an
expression without references it is evaluated before all others.
"""

from __future__ import annotations

import copy
import inspect
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, ClassVar, NoReturn

from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.reference_resolver import ReferenceResolver
from monai.bundle.scripts import run, run_workflow, update_kwargs
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS, ID_SEP_KEY
from pydantic import BaseModel, ConfigDict, ValidationError

from bundle.command_line import is_command_line, print_error, show_errors_plainly
from bundle.files import content_digest
from bundle.option_types import OutputFolder, closest

__all__ = ["INTERNAL", "OptionError", "Options", "check_options", "check_output_dir", "number_problems", "validate"]

# Paths of the configuration files, their contents, and the index of the command's own.
ConfigFiles = tuple[list[str], list[dict[str, Any]], int]
# What MONAI does with values that begin with these characters.
_MEANINGS = {"$": "run as Python", "@": "replace by another item", "%": "replace by what a file holds"}
#: Fields that commands need and users do not; omitted from lists of options.
INTERNAL = {"bundle_root", "save_execute_config", "is_not_rank0"}
# Reference to another item in an expression.
_REFERENCE = re.compile(r"@([A-Za-z_]\w*)")


class OptionError(ValueError):
    """Options that do not exist or have invalid values; the message names each, with the nearest valid one.

    ``monai.bundle.run`` raises a RuntimeError with this error as its cause; the functions of `bundle.api` raise it
    directly.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class Options(BaseModel):
    """The options of a command.

    A subclass declares the type and bounds of each option; the defaults are in the command's configuration.

    Attributes:
        former_options: removed options of earlier releases, each with a hint what to write instead.
    """

    former_options: ClassVar[Mapping[str, str]] = {}

    model_config = ConfigDict(strict=True, arbitrary_types_allowed=True)


class _OutputDir(Options):
    output_dir: OutputFolder


def check_options(options: type[Options]) -> dict[str, Any]:
    """Rejects overrides that no configuration file contains, and invalid values.

    On the command line (``python -m monai.bundle``), the message goes to stderr without a traceback and the exit code
    is 2; later errors are shown likewise (see `bundle.command_line.show_errors_plainly`). An option whose default is an
    expression over other items than options is not checked here.

    Args:
        options: types and bounds of the command's options.

    Returns:
        Changes of the configuration besides the options that the results must record: empty, or under
        ``changed_configuration`` the ids of the parts that the call or an overlay has changed, each with its value if
        that is a number, a truth value or None, otherwise with a hash.

    Raises:
        OptionError: at least one option is rejected; all problems are listed.
        SystemExit: with code 2, instead of OptionError on the command line.
    """
    if is_command_line():
        show_errors_plainly()
    parser = _find_on_stack(ConfigParser)
    if parser is None:
        raise RuntimeError("check_options is an expression of a configuration: evaluate it there.")
    problems: list[str] = []
    changed: dict[str, Any] = {}
    call = _call_of_monai()
    if call is not None and call.get("config_file") is not None:
        _restore_options(call, parser)
        files = _config_files(call)
        problems += [*_unknown_options(call, options), *_misspelt_in_overlays(files, options)]
        problems += [*_expressions(call, options), *_vain_overlays(files)]
        changed = _changed_parts(call, files, options)
    if not problems:
        problems = _problems(options, parser)
    if problems:
        _refuse(problems)
    return {"changed_configuration": changed} if changed else {}


def number_problems(values: Any, least: Mapping[str, int], whole: Sequence[str] = ()) -> list[str]:
    """Describes attributes that are not finite numbers of at least a bound.

    Args:
        values: object with the attributes.
        least: smallest value of each attribute, by name.
        whole: names of those that must be whole numbers.
    """
    problems = []
    for name, bound in least.items():
        value, kind = getattr(values, name), "a whole number" if name in whole else "a number"
        types = (int,) if name in whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, types) or not bound <= value < math.inf:
            problems.append(f"{name} must be {kind} of at least {bound}, not {value!r}.")
    return problems


def check_output_dir(output_dir: str | os.PathLike[str]) -> None:
    """Rejects an output folder that cannot be written; for folder names that are computed from options.

    Raises:
        OptionError: the folder cannot be written.
    """
    if problems := validate(_OutputDir, {"output_dir": output_dir}):
        _refuse(problems)


def _refuse(problems: Sequence[str]) -> NoReturn:
    if not is_command_line():
        raise OptionError(problems)
    for problem in problems:
        print_error(problem)
    raise SystemExit(2)


def _problems(options: type[Options], parser: ConfigParser) -> list[str]:
    """Checks the values given in the configuration, and then the defaults that are computed from them."""
    config = parser.get()
    present = [name for name in options.model_fields if name in config]
    computed = [name for name in present if _is_expression(config[name])]
    given = {name: parser.ref_resolver.get_resolved_content(name) for name in present if name not in computed}
    problems = validate(options, given)
    if not problems:
        # Only defaults computed from options, directly or indirectly: other expressions may depend on this check.
        known = set(given)
        while simple := {name for name in computed if set(_REFERENCE.findall(config[name])) <= known} - known:
            known |= simple
        problems = validate(options, {name: parser.ref_resolver.get_resolved_content(name) for name in sorted(known)})
    return problems


def _is_expression(value: Any) -> bool:
    return isinstance(value, str) and value[:1] in ("$", "@")


def validate(options: type[Options], values: dict[str, Any]) -> list[str]:
    """Returns one line for each invalid value among some options, given by their names."""
    try:
        options.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_url=False)
        return [f"--{entry['loc'][0]} {_message(entry)}" for entry in found if entry["type"] != "missing"]
    return []


def _message(error: Mapping[str, Any]) -> str:
    """Returns pydantic's finding in the wording of this bundle."""
    value, bounds = error["input"], error.get("ctx", {})
    words = {
        "greater_than_equal": ("at least", "ge"),
        "less_than_equal": ("at most", "le"),
        "greater_than": ("above", "gt"),
        "less_than": ("below", "lt"),
    }
    kinds = {"int": "a whole number", "float": "a number", "finite": "a finite number", "bool": "True or False"}
    if error["type"] in words:
        word, key = words[error["type"]]
        bound = str(bounds[key]) if isinstance(bounds[key], int) else f"{bounds[key]:g}"
        nearest = f" The nearest is {bound}." if key in ("ge", "le") else ""
        return f"must be {word} {bound}, not {value!r}.{nearest}"
    kind = kinds.get(str(error["type"]).partition("_")[0])
    return f"must be {kind}, not {value!r}." if kind else str(error["msg"])


def _call_of_monai() -> dict[str, Any] | None:
    """Returns the arguments of the innermost `monai.bundle.run` (or run_workflow) on the stack, args_file merged in."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code not in (run.__code__, run_workflow.__code__):
        frame = frame.f_back
    if frame is None:
        return None
    given = inspect.getargvalues(frame)
    arguments = {name: given.locals[name] for name in given.args if name != "args_file"}
    # MONAI modifies a dictionary given as args_file.
    return update_kwargs(copy.deepcopy(given.locals["args_file"]), **arguments, **given.locals[str(given.keywords)])


def _find_on_stack(wanted: type) -> Any:
    """Returns the innermost instance of a class whose method is on the call stack, or None."""
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        if isinstance(found := frame.f_locals.get("self"), wanted):
            return found
        frame = frame.f_back
    return None


def _restore_options(call: Mapping[str, Any], parser: ConfigParser) -> None:
    """Restores option values that contain #, which MONAI replaces by ::, its newer separator in ids."""
    resolver = parser.ref_resolver
    for name, value in call.items():
        # Values that are not references, macros or expressions.
        if isinstance(value, str) and "#" in value and value[0] not in "@%$" and name in resolver.items:
            resolver.items[name].update_config(value)
            resolver.resolved_content[name] = value


def _own_names(call: Mapping[str, Any]) -> set[str]:
    """Returns the names of MONAI's own arguments, and those that ``--tracking`` adds."""
    own = {*inspect.signature(run).parameters, *inspect.signature(ConfigWorkflow).parameters, "workflow_name"}
    own -= {"override", "kwargs"}
    tracking = call.get("tracking")
    if tracking is not None:
        is_default = isinstance(tracking, str) and tracking in DEFAULT_EXP_MGMT_SETTINGS
        settings: dict[str, Any] = (
            DEFAULT_EXP_MGMT_SETTINGS[tracking] if is_default else ConfigParser.load_config_files(tracking)
        )
        own |= settings["configs"].keys() - settings["handlers_id"].keys()
    return own


def _unknown_options(call: Mapping[str, Any], options: type[Options]) -> Iterator[str]:
    own = _own_names(call)
    names = [name for name in options.model_fields if name not in INTERNAL]
    config = ConfigParser(ConfigParser.load_config_files(call["config_file"]))
    files = call["config_file"] if isinstance(call["config_file"], str) else ", ".join(map(str, call["config_file"]))
    for name in call:
        if name in options.former_options:
            yield f"--{name} is no longer an option of {files}: {options.former_options[name]}"
        elif name not in own and name not in config:
            nearest = closest(name, [*names, *own], cutoff=0.6) or closest(name, _all_ids(config.get()))
            yield f"--{name} is not an option of {files}. Did you mean --{nearest}? It has: {', '.join(names)}."
    for name in ("init_id", "final_id"):
        if call.get(name) is not None and call[name] not in config:
            yield f"{call[name]!r} is not an id of {files}. Give options as --name value, and one run id at most."


def _misspelt_in_overlays(config_files: ConfigFiles, options: type[Options]) -> Iterator[str]:
    """Yields a problem for each name of an overlay that nothing uses and that resembles one that is used."""
    files, contents, base = config_files
    names = [name for name in options.model_fields if name not in INTERNAL]
    for file, content in zip(files[base + 1 :], contents[base + 1 :], strict=True):
        for name in content:
            is_new = name not in contents[base] and name not in names and not name.startswith(("_", "+"))
            if is_new and (nearest := closest(name, [*contents[base], *names], cutoff=0.85)):
                yield f"{file} sets {name}, which nothing uses. Did you mean {nearest}?"


def _expressions(call: Mapping[str, Any], options: type[Options]) -> Iterator[str]:
    for name in options.model_fields:
        if isinstance(value := call.get(name), str) and (first := value[:1]) in _MEANINGS:
            yield f"--{name} {value!r} begins with {first}, which MONAI would {_MEANINGS[first]}. Give a value."


def _config_files(call: Mapping[str, Any]) -> ConfigFiles:
    """Returns the configuration files, their contents and the index of the command's own, which has the run id."""
    given = call["config_file"]
    files = list(map(str, given if isinstance(given, list | tuple) else [given]))
    contents = [ConfigParser.load_config_file(file) for file in files]
    base = next((index for index, content in enumerate(contents) if (call.get("run_id") or "run") in content), 0)
    return files, contents, base


def _changed_parts(call: Mapping[str, Any], config_files: ConfigFiles, options: type[Options]) -> dict[str, Any]:
    _, contents, base = config_files
    own = {*_own_names(call), *options.model_fields}
    changed = {name: value for content in contents[base + 1 :] for name, value in content.items()} | dict(call)
    return {
        name.replace(ID_SEP_KEY, "#"): value if isinstance(value, bool | int | float | None) else _hash(value)
        for name, value in sorted(changed.items())
        if name not in own
    }


def _hash(value: Any) -> str:
    # A plain value might name a folder or a patient, and the record may be shared.
    return f"sha256:{content_digest(value)}"


def _vain_overlays(config_files: ConfigFiles) -> Iterator[str]:
    # The later of two files takes precedence, so an overlay listed before the command's own file has no effect.
    files, contents, base = config_files
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
