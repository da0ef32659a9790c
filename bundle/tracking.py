# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""MLflow: the default store of runs, and the handlers that record trainings and evaluations."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote

import ignite.distributed as idist
import torch
from filelock import FileLock
from ignite.engine import Engine, Events
from monai.handlers import MLFlowHandler
from monai.utils import path_to_sqlite_uri

from bundle.files import private_folder
from bundle.markup import printable

__all__ = ["ChildRuns", "Tracking", "tracking_uri"]

logger = logging.getLogger(__name__)


def tracking_uri(output_dir: str | os.PathLike[str]) -> str:
    """Returns the address of a run's MLflow store, and creates the folder that SQLite needs.

    The store is private, because a run's parameters name folders and it holds figures about real images. As always in
    MLflow, MLFLOW_TRACKING_URI takes precedence. MLflow's telemetry is turned off unless MLFLOW_DISABLE_TELEMETRY is
    set, because a hospital's machine should send no data without consent.

    Args:
        output_dir: folder of the run.

    Returns:
        A SQLite address of ``output_dir/private/mlruns.db``.
    """
    if "MLFLOW_DISABLE_TELEMETRY" not in os.environ and _has_mlflow():
        import mlflow.telemetry

        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        mlflow.telemetry.set_telemetry_client()  # MONAI has already imported MLflow, which read the variable
    path = Path(output_dir).absolute() / "private" / "mlruns.db"
    private_folder(path.parent)
    return path_to_sqlite_uri(path)


def _has_mlflow() -> bool:
    return find_spec("mlflow") is not None


@contextmanager
def _opening(tracking_uri: str) -> Iterator[None]:
    """Context in which a store may be opened by one process at a time, and is complete if it is a SQLite file.

    MLflow creates a SQLite store table by table: of several processes that open it at once, all but one would fail, and
    a process that is killed meanwhile would leave a store that can never be opened. So a new store is created under a
    temporary name.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or tracking_uri
    if not uri.startswith("sqlite:///"):
        yield
        return
    path = Path(unquote(uri.removeprefix("sqlite:///")))
    with FileLock(f"{path}.lock"):
        if not path.exists():
            from mlflow import MlflowClient

            new = path.with_name(f"{path.name}.new")
            new.unlink(missing_ok=True)
            MlflowClient(path_to_sqlite_uri(new)).search_experiments(max_results=1)
            new.replace(path)
        yield


class Tracking(MLFlowHandler):
    """MONAI's MLflow handler with the bundle's store, adapted to runs that are interrupted and resumed.

    A killed run resumes under the same MLflow run; a finished one stays unchanged. In a distributed run only the first
    process records; several runs may open one store at once. Without MLflow, nothing is recorded, with a warning.

    Args:
        tracking_uri: address of the store, usually from the function `tracking_uri`.
        experiment_name: name under which runs are grouped, such as ``"train_gan"``.
        run_name: name of the run within the experiment; a killed run resumes only under its own name.
        parameters: parameters of the run; None and strings are recorded as they print.
        keys: names of the values to record from an iteration's output, a dictionary or a list whose first is used.
        interval: iterations between two records.
        artifacts: files and folders to copy into the store once the run is complete.
    """

    def __init__(
        self,
        tracking_uri: str,
        experiment_name: str,
        run_name: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        keys: Sequence[str] = ("loss",),
        interval: int = 50,
        artifacts: Sequence[str | os.PathLike[str]] = (),
    ) -> None:
        self.parameters = dict(parameters or {})
        self.keys = tuple(keys)
        self._recorded: dict[str, Any] = {}
        self._available = _has_mlflow()
        if not self._available:
            logger.warning("The run is not recorded: MLflow is not installed. Install the package mlflow to record it.")
            return
        self._tracking_uri = tracking_uri
        with _opening(tracking_uri):
            super().__init__(
                tracking_uri=tracking_uri,
                iteration_log=lambda engine, iteration: iteration % interval == 0,
                epoch_logger=self._record_metrics,
                output_transform=self._values,
                experiment_name=experiment_name,
                run_name=run_name,
                artifacts=[Path(path) for path in artifacts],
                close_on_complete=True,
            )

    def attach(self, engine: Engine) -> None:
        """Registers the events, in the first process only."""
        if self._available and idist.get_rank() == 0:
            super().attach(engine)

    def start(self, engine: Engine) -> None:
        """Opens the run, or resumes the killed one, and records the parameters that it lacks."""
        with _opening(self._tracking_uri):
            super().start(engine)
        # MLflow rejects a second value: parameters that changed since the run was killed keep their first value.
        missing = {key: value if value is None else printable(str(value)) for key, value in self.parameters.items()}
        self._delete_exist_param_in_dict(missing)
        self._log_params(missing)

    def _values(self, output: Any) -> dict[str, float]:
        first = output[0] if isinstance(output, list) else output  # MONAI's engines decollate by default
        # float() would warn about a loss with a gradient.
        return {key: torch.as_tensor(first[key]).item() for key in self.keys}

    def _record_metrics(self, engine: Engine) -> None:
        # Metrics may be measured less often than once an epoch: an old value is not recorded again.
        new = {key: value for key, value in engine.state.metrics.items() if self._recorded.get(key) != value}
        if new:
            self._log_metrics(new, step=engine.state.iteration)
            self._recorded.update(new)


class ChildRuns:
    """Records each arm and seed of an evaluation as a child run of the evaluation's MLflow run.

    The engine reports what an iteration measured in ``state.output``: ``arm``, ``seed`` and ``metrics``; an empty arm
    records nothing. Children recorded by an earlier run stay unchanged.

    Args:
        parent: handler that records the evaluation; must be attached to the engine before this one.
    """

    def __init__(self, parent: Tracking) -> None:
        self.parent = parent
        self._done: set[str] = set()

    def attach(self, engine: Engine) -> None:
        """Registers the events, unless nothing is recorded."""
        if self.parent._available and idist.get_rank() == 0:
            engine.add_event_handler(Events.STARTED, self._find)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._record)

    def _find(self, engine: Engine) -> None:
        client, run = self.parent.client, cast(Any, self.parent.cur_run)
        known = client.search_runs(
            [run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}' and status = 'FINISHED'"
        )
        self._done = {child.info.run_name for child in known}

    def _record(self, engine: Engine) -> None:
        output = cast(Mapping[str, Any], engine.state.output)
        name = f"{output['arm']}, seed {output['seed']}"
        if not output["arm"] or name in self._done:
            return
        client, run = self.parent.client, cast(Any, self.parent.cur_run)
        tags = {"mlflow.parentRunId": run.info.run_id}
        child = client.create_run(run.info.experiment_id, run_name=name, tags=tags).info.run_id
        from mlflow.entities import Metric, Param

        now = int(1000 * time.time())
        metrics = [Metric(key, value, now, 0) for key, value in output["metrics"].items()]
        # One by one, they would take longer than most measures.
        client.log_batch(child, metrics, [Param(key, output[key]) for key in ("arm", "seed")])
        client.set_terminated(child)
        self._done.add(name)
