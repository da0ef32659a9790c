# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The commands as functions, for notebooks and programs.

Each function runs the configuration of its command, so that options, defaults, files and messages are those of the
command line. An option that is None or left out keeps its default. What differs is how a function ends: it returns an
object, also where a command ends with an exit code, and raises the bundle's own error, without those that MONAI wraps
around it.

Example:
    >>> from bundle import audit, generate
    >>> cohort = generate(n_images=64, seed=7)
    >>> audit(cohort_dir=cohort, dataset_dir="images")
"""

from __future__ import annotations

import inspect
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from monai.bundle import ConfigParser, ConfigWorkflow, run_workflow

import bundle.data
from bundle.cohort.ledger import CohortError as CohortError
from bundle.command_line import own_error
from bundle.commands import COMMANDS
from bundle.data import DataError as DataError
from bundle.networks.model_set import ModelSet
from bundle.networks.weights import WeightsError as WeightsError
from bundle.options import INTERNAL, OptionError, validate
from bundle.results import STATUS, AuditResult, DataCheck, GeneratedCohort

__all__ = ["audit", "check_data", "generate", "load_models"]

Configs = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
Function = TypeVar("Function", bound=Callable[..., Any])

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
# Lines that a command line writes into its log and a notebook has no use for; errors reach the caller as exceptions.
QUIET = {"monai.bundle.scripts": logging.ERROR, "monai.bundle.workflows": logging.ERROR, "mlflow": logging.WARNING}
QUIET |= {"alembic": logging.WARNING, "ignite": logging.CRITICAL, "ignite.engine": logging.CRITICAL}


def _shows_options(command: str, file: str, names: Sequence[str] | None = None) -> Callable[[Function], Function]:
    """Lets Python and notebooks list the options of a command and their defaults as parameters of a function.

    Args:
        command: one of `bundle.commands.COMMANDS`.
        file: its configuration; a default that is computed there is shown as None.
        names: the options to show; None for all.
    """
    model, config = COMMANDS[command], ConfigParser.load_config_file(str(CONFIGS / file))
    parameters = []
    for name in names or sorted(model.model_fields, key=[*config, *model.model_fields].index):
        default = config.get(name)
        if isinstance(default, str) and default[:1] in ("$", "@"):
            default = None
        elif validate(model, {name: default}):
            default = inspect.Parameter.empty  # there is none
        if name not in INTERNAL:
            parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default))
    parameters.sort(key=lambda parameter: parameter.default is not inspect.Parameter.empty)

    def decorate(function: Function) -> Function:
        own = list(inspect.signature(function).parameters.values())
        signature = inspect.Signature([*parameters, *own], return_annotation=function.__annotations__["return"])
        function.__signature__ = signature  # type: ignore[attr-defined]
        return function

    return decorate


@_shows_options("generate", "plan.json")
def generate(*, configs: Configs = (), **options: Any) -> GeneratedCohort:
    """Makes a cohort of synthetic images; completes one that was broken off, verifies one that is there.

    Args:
        configs: further configuration files, the last of which counts: paths, relative to the working directory or the
            bundle's folder, such as ``"configs/published.json"``.
        **options: of the command ``generate``, as README.md lists them; parts of configs/plan.json by their ids, as in
            ``**{"walk_settings#steps": 50}``.

    Returns:
        The cohort, in ``output_dir/cohort``.

    Raises:
        OptionError: an option does not exist or cannot be.
        WeightsError: networks are missing, damaged or do not belong together.
        DataError: dataset_dir is not what the networks were trained on.
        CohortError: output_dir holds another cohort or a damaged one, or hardly anything passes the gate.
    """
    (output_dir,) = _run("plan.json", "generate", configs, options, ("output_dir",))
    return GeneratedCohort(Path(output_dir).absolute() / "cohort")


@_shows_options("audit", "audit.json")
def audit(*, configs: Configs = (), **options: Any) -> AuditResult:
    """Judges a folder of synthetic images, whoever made it, against the real images behind it.

    Args:
        configs: see `generate`.
        **options: of the command ``audit``: ``cohort_dir``, a path or what `generate` returns, ``dataset_dir``, and
            those that docs/audit.md explains.

    Returns:
        The verdict. It is returned, not raised, where the cohort must not be released or cannot be judged.

    Raises:
        OptionError: an option does not exist or cannot be.
        DataError: a folder cannot be judged, or output_dir holds another audit's results.
        WeightsError: the audit's networks do not fit.
    """
    (engine,) = _run("audit.json", "audit", configs, options, ("evaluator",))
    return AuditResult(engine.output_dir.absolute(), engine.results)


@_shows_options("check_data", "check_data.json")
def check_data(*, configs: Configs = (), **options: Any) -> DataCheck:
    """Opens every real image and tells whether they can be used.

    Args:
        configs: see `generate`.
        **options: of the command ``check_data``: ``dataset_dir``, and those that docs/data.md explains.

    Returns:
        What was found. It is returned, not raised, where images are damaged, doubled or too few.

    Raises:
        OptionError: an option does not exist or cannot be.
        DataError: the folder cannot be read as a data set at all.
    """
    (settled,) = _run("check_data.json", None, configs, options, ("options",))
    return DataCheck(bundle.data.check_data(**settled), Path(settled["output_dir"]).absolute())


@_shows_options("generate", "plan.json", ("modality", "models_dir", "guides", "device"))
def load_models(*, configs: Configs = (), **options: Any) -> ModelSet:
    """Loads the networks that `generate` works with.

    Args:
        configs: see `generate`.
        **options: ``modality``, ``models_dir``, ``guides`` and ``device`` of the command ``generate``; its other
            options are taken and make no difference.

    Returns:
        Generator, guides and gate networks, in evaluation mode, taking no gradients.

    Raises:
        OptionError: an option does not exist or cannot be.
        WeightsError: networks are missing, damaged or do not belong together.
    """
    (models,) = _run("plan.json", None, configs, options, ("models",))
    assert isinstance(models, ModelSet)
    return models


def _run(file: str, run_id: str | None, configs: Configs, options: dict[str, Any], wanted: Sequence[str]) -> list[Any]:
    """Runs a configuration of the bundle.

    Args:
        file: in the folder ``configs``.
        run_id: what to run; None checks the options alone.
        configs: further configuration files.
        options: overrides; None leaves an item as it is.
        wanted: items whose content to return.

    Raises:
        Exception: whatever the run has raised, without MONAI's errors around it.
    """
    found: list[Any] = []

    class Workflow(ConfigWorkflow):
        """Keeps what the run was to make."""

        def run(self) -> Any:
            if run_id is None:
                self.parser.get_parsed_content("check_options")
            else:
                try:
                    super().run()
                except SystemExit as stopped:
                    if stopped.code not in STATUS:
                        raise
            found.extend(self.parser.get_parsed_content(name) for name in wanted)

    here = {"bundle_root": "." if Path.cwd() == ROOT else str(ROOT)}  # the default folders' names depend on it
    given = {name: _plain(value) for name, value in options.items()}
    files = [str(CONFIGS / file), *_overlays(configs)]
    try:
        with _quiet():
            run_workflow(Workflow, None, run_id=run_id, config_file=files, logging_file=False, **{**here, **given})  # type: ignore[arg-type]
        return found
    except Exception as error:
        failure = own_error(error) or _cause(error)
    raise failure  # here, where it is not shown as a consequence of MONAI's


def _cause(error: BaseException) -> BaseException:
    while type(error) is RuntimeError and error.__cause__ is not None:
        error = error.__cause__
    return error


def _plain(value: Any) -> Any:
    """Returns an option as the command line gives it: paths as texts."""
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _overlays(configs: Configs) -> Iterator[str]:
    for file in [configs] if isinstance(configs, str | os.PathLike) else configs:
        path = next((path for path in (Path(file), ROOT / file) if path.is_file()), None)
        if path is None:
            raise OptionError([f"configs: {os.fspath(file)} does not exist, here or in {ROOT}. Name a file that does."])
        yield str(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leaves the program's logging as it was; training inside a run applies configs/logging.conf."""
    before = {logger: (logger.level, [*logger.handlers]) for logger in map(logging.getLogger, (None, *QUIET))}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "parsing config_file")  # MONAI's reminder that configurations run code
        try:
            for name, level in QUIET.items():
                logging.getLogger(name).setLevel(level)
            yield
        finally:
            for logger, (level, handlers) in before.items():
                logger.setLevel(level)
                logger.handlers[:] = handlers
