# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""PLAN: privacy-preserving walks in the latent space of generative models of medical images.

The commands as functions: ``from bundle import audit, check_data, export, generate, load_models``, see `bundle.api`.
PyTorch and MONAI are imported when one of these names is first accessed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = [
    "AuditResult",
    "CohortError",
    "DataCheck",
    "DataError",
    "GeneratedCohort",
    "OptionError",
    "WeightsError",
    "audit",
    "check_data",
    "export",
    "generate",
    "load_models",
]

if TYPE_CHECKING:
    from bundle.api import (
        AuditResult,
        CohortError,
        DataCheck,
        DataError,
        GeneratedCohort,
        OptionError,
        WeightsError,
        audit,
        check_data,
        export,
        generate,
        load_models,
    )
else:

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module("bundle.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
