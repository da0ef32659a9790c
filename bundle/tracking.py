# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""MLflow: where runs are stored by default, and the handler with which training records itself."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
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
    """Returns the address of the MLflow store of a run's folder, and makes the folder that SQLite needs.

    The store is private: a run's parameters name folders, and its pictures stand beside figures of real images.
    MLFLOW_TRACKING_URI wins over it, as everywhere in MLflow. MLflow's reports of its own use over the network are
    turned off, unless MLFLOW_DISABLE_TELEMETRY says otherwise: a hospital's machine should send nothing unasked.

    Args:
        output_dir: the run's folder.

    Returns:
        A SQLite address of ``output_dir/private/mlruns.db``.
    """
    if "MLFLOW_DISABLE_TELEMETRY" not in os.environ and _has_mlflow():
        import mlflow.telemetry

        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        mlflow.telemetry.set_telemetry_client()  # MONAI has imported MLflow already, which read the variable then
    path = Path(output_dir).absolute() / "private" / "mlruns.db"
    private_folder(path.parent)
    return path_to_sqlite_uri(path)


def _has_mlflow() -> bool:
    return find_spec("mlflow") is not None


def _opening(tracking_uri: str) -> AbstractContextManager[Any]:
    # MLflow makes a new SQLite store table by table: of several processes that open it at once, all but one would fail.
    uri = os.environ.get("MLFLOW_TRACKING_URI") or tracking_uri
    if not uri.startswith("sqlite:///"):
        return nullcontext()
    return FileLock(unquote(uri.removeprefix("sqlite:///")) + ".lock")


class Tracking(MLFlowHandler):
    """MONAI's MLflow handler with the bundle's store, settled for runs that are stopped and go on.

    A run that was killed goes on under the same MLflow run; a finished one stays as it is. Only the first of several
    processes of one run records; several runs may open one store at once. On a machine without MLflow, a warning says
    that nothing is recorded.

    Args:
        tracking_uri: the store, as a rule what the function `tracking_uri` returns.
        experiment_name: under which runs are grouped, such as ``"train_gan"``.
        run_name: tells runs of one experiment apart; a killed run goes on under its own name only.
        parameters: what the run was started with; None and strings are recorded as they print.
        keys: numbers to record of an iteration's output, a dictionary or a list of them, of which the first counts.
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
        """Opens the run, or the one that was killed, and records the parameters that it does not have yet."""
        with _opening(self._tracking_uri):
            super().start(engine)
        # MLflow refuses a second value: what changed since the run was killed stays as first recorded.
        missing = {key: value if value is None else printable(str(value)) for key, value in self.parameters.items()}
        self._delete_exist_param_in_dict(missing)
        self._log_params(missing)

    def _values(self, output: Any) -> dict[str, float]:
        first = output[0] if isinstance(output, list) else output  # MONAI's engines decollate, unless told not to
        # Of a loss with a gradient, float() warns.
        return {key: torch.as_tensor(first[key]).item() for key in self.keys}

    def _record_metrics(self, engine: Engine) -> None:
        # Measured less often than once an epoch: an old value is not recorded as a new one.
        new = {key: value for key, value in engine.state.metrics.items() if self._recorded.get(key) != value}
        if new:
            self._log_metrics(new, step=engine.state.iteration)
            self._recorded.update(new)


class ChildRuns:
    """Records each arm and seed of an evaluation as a run of its own, below the run of the whole.

    An engine says what it has measured in an iteration by ``state.output``: ``arm``, ``seed`` and ``metrics``; the arm
    is empty where there is nothing to record. A child that an earlier run has recorded stays as it is.

    Args:
        parent: records the whole; attached to the engine before this handler.
    """

    def __init__(self, parent: Tracking) -> None:
        self.parent = parent
        self._done: set[str] = set()

    def attach(self, engine: Engine) -> None:
        """Registers the events, where anything is recorded at all."""
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
        for key in ("arm", "seed"):
            client.log_param(child, key, output[key])
        for key, value in output["metrics"].items():
            client.log_metric(child, key, value)
        client.set_terminated(child)
        self._done.add(name)
