# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The commands as functions, for notebooks and programs.

Each function runs the configuration of its command, with the same options, defaults, files and messages as on the
command line. An option that is None or left out keeps its default. Unlike a command, a function returns an object, even
where the command ends with an exit code, and raises the bundle's own errors without MONAI's wrappers.

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

__all__ = ["audit", "check_data", "export", "generate", "load_models"]

Configs = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
Function = TypeVar("Function", bound=Callable[..., Any])

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
# Loggers whose messages are useful on the command line but not in a notebook, where errors are raised as exceptions.
QUIET = {"monai.bundle.scripts": logging.ERROR, "monai.bundle.workflows": logging.ERROR, "mlflow": logging.WARNING}
QUIET |= {"alembic": logging.WARNING, "ignite": logging.CRITICAL, "ignite.engine": logging.CRITICAL}


def _shows_options(command: str, file: str, names: Sequence[str] | None = None) -> Callable[[Function], Function]:
    """Gives a function a signature with the options of a command and their defaults, for help and completion.

    Args:
        command: one of `bundle.commands.COMMANDS`.
        file: configuration file of the command; defaults computed in it are shown as None.
        names: options to show; None for all.
    """
    model, config = COMMANDS[command], ConfigParser.load_config_file(str(CONFIGS / file))
    parameters = []
    for name in names or sorted(model.model_fields, key=[*config, *model.model_fields].index):
        default = config.get(name)
        if isinstance(default, str) and default[:1] in ("$", "@"):
            default = None
        elif validate(model, {name: default}):
            default = inspect.Parameter.empty  # no default
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
    """Makes a cohort of synthetic images; resumes an interrupted one and verifies a complete one.

    Args:
        configs: further configuration files, of which later ones take precedence; paths relative to the working
            directory or the bundle's folder, such as ``"configs/published.json"``.
        **options: options of the command ``generate``, see README.md, or parts of configs/plan.json by their ids, as in
            ``**{"walk_settings#steps": 50}``.

    Returns:
        The cohort, in ``output_dir/cohort``.

    Raises:
        OptionError: an option does not exist or has an invalid value.
        WeightsError: networks are missing, damaged or do not belong together.
        DataError: dataset_dir does not hold the data that the networks were trained on.
        CohortError: output_dir holds another cohort or a damaged one, or hardly any image passes the gate.
    """
    (output_dir,) = _run("plan.json", "generate", configs, options, ("output_dir",))
    return GeneratedCohort(Path(output_dir).absolute() / "cohort")


@_shows_options("export", "export.json")
def export(*, configs: Configs = (), **options: Any) -> GeneratedCohort:
    """Verifies a cohort and adds its images in further file formats; the cohort may come from somebody else.

    Args:
        configs: see `generate`.
        **options: options of the command ``export``: ``cohort_dir`` (a path or the result of `generate`) and
            ``formats``, see docs/formats.md.

    Returns:
        The cohort.

    Raises:
        OptionError: an option does not exist or has an invalid value.
        CohortError: the folder is not as its manifest says.
    """
    (cohort_dir,) = _run("export.json", "export", configs, options, ("cohort_dir",))
    return GeneratedCohort(Path(cohort_dir).resolve())


@_shows_options("audit", "audit.json")
def audit(*, configs: Configs = (), **options: Any) -> AuditResult:
    """Audits a folder of synthetic images from any source against the real images that its generator was trained on.

    Args:
        configs: see `generate`.
        **options: options of the command ``audit``: ``cohort_dir`` (a path or the result of `generate`),
            ``dataset_dir`` and those described in docs/audit.md.

    Returns:
        The verdict, also if the cohort must not be released or cannot be audited.

    Raises:
        OptionError: an option does not exist or has an invalid value.
        DataError: a folder cannot be audited, or output_dir holds another audit's results.
        WeightsError: the audit networks do not fit the data.
    """
    (engine,) = _run("audit.json", "audit", configs, options, ("evaluator",))
    first = AuditResult(engine.output_dir.absolute(), engine.results, engine.cohort.folder)
    if engine.second is None:
        return first
    second = engine.second
    return AuditResult(second.output_dir.absolute(), second.results, second.cohort.folder, first)


@_shows_options("check_data", "check_data.json")
def check_data(*, configs: Configs = (), **options: Any) -> DataCheck:
    """Opens every real image and reports whether the images can be used.

    Args:
        configs: see `generate`.
        **options: options of the command ``check_data``: ``dataset_dir`` and those described in docs/data.md.

    Returns:
        The findings, also if images are damaged, duplicated or too few.

    Raises:
        OptionError: an option does not exist or has an invalid value.
        DataError: the folder cannot be read as a data set.
    """
    (settled,) = _run("check_data.json", None, configs, options, ("options",))
    return DataCheck(bundle.data.check_data(**settled), Path(settled["output_dir"]).absolute())


@_shows_options("generate", "plan.json", ("modality", "models_dir", "guides", "device"))
def load_models(*, configs: Configs = (), **options: Any) -> ModelSet:
    """Loads the networks that `generate` uses.

    Args:
        configs: see `generate`.
        **options: ``modality``, ``models_dir``, ``guides`` and ``device`` of the command ``generate``; its other
            options are accepted and ignored.

    Returns:
        Generator, guides and gate networks, in evaluation mode, with gradients disabled.

    Raises:
        OptionError: an option does not exist or has an invalid value.
        WeightsError: networks are missing, damaged or do not belong together.
    """
    (models,) = _run("plan.json", None, configs, options, ("models",))
    assert isinstance(models, ModelSet)
    return models


def _run(file: str, run_id: str | None, configs: Configs, options: dict[str, Any], wanted: Sequence[str]) -> list[Any]:
    """Runs a configuration file of the bundle with overrides and returns the content of the items in ``wanted``.

    If ``run_id`` is None, only the options are checked. Errors of the run are raised without MONAI's wrappers.
    """
    found: list[Any] = []

    class Workflow(ConfigWorkflow):
        """Collects the wanted items after the run."""

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

    here = {"bundle_root": "." if Path.cwd() == ROOT else str(ROOT)}  # names of default folders depend on it
    given = {name: _plain(value) for name, value in options.items()}
    files = [str(CONFIGS / file), *_overlays(configs)]
    try:
        with _quiet():
            run_workflow(Workflow, None, run_id=run_id, config_file=files, logging_file=False, **{**here, **given})  # type: ignore[arg-type]
        return found
    except Exception as error:
        failure = own_error(error) or _cause(error)
    raise failure  # outside the except block, so that it is not chained to MONAI's error


def _cause(error: BaseException) -> BaseException:
    while type(error) is RuntimeError and error.__cause__ is not None:
        error = error.__cause__
    return error


def _plain(value: Any) -> Any:
    """Returns an option in the form of the command line: paths as strings."""
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
    """Restores the program's logging afterwards; a training inside the run applies configs/logging.conf."""
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
