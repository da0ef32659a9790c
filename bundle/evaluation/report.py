# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Writes the results of an evaluation, aggregates only: tables over seeds, comparisons and charts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup
from matplotlib.figure import Figure
from torch import Tensor

from bundle.auditing.catalogue import FIDELITY, PRIVACY, with_proof
from bundle.auditing.reference import VERIFIER
from bundle.auditing.resampling import Estimate
from bundle.evaluation.arms import ARMS
from bundle.evaluation.catalogue import (
    COMPARISONS,
    EXTERNAL,
    GRADES,
    LONG_COMPARISONS,
    MEASURES,
    PAPER,
    PLACEBO,
    limits,
)
from bundle.evaluation.setting import Setting
from bundle.evaluation.sources import PAIR_MEASURES, SourcePair
from bundle.evaluation.summaries import Summary, difference, over_seeds, ratio
from bundle.evaluation.tables import (
    AGAINST_TEST,
    COST,
    DIFFERENCES,
    LONG_KEYS,
    RATIOS,
    cell_text,
    markdown_tables,
    pair_title,
)
from bundle.figures.evaluations import arms_chart, distance_chart, save_chart
from bundle.figures.svg import as_svg
from bundle.files import bundle_version, write_json, write_text
from bundle.markup import write_html
from bundle.metrics.features import FEATURES
from bundle.metrics.lpips import LPIPS_TRUNK

__all__ = ["evaluation_results", "write_evaluation"]

# Quantiles over paths for lower edge, line and upper edge of the band in the chart of distances.
BAND = (0.05, 0.5, 0.95)
#: Measures in the chart of the arms.
CHARTED = (
    "accuracy",
    "mia_accuracy",
    "copy_rate",
    "lpips_p5",
    "mml",
    "kid_all",
    "precision",
    "recall",
    "distinct",
)


def evaluation_results(
    setting: Setting,
    seeds: Sequence[int],
    estimates: Mapping[str, Sequence[Mapping[str, Estimate]]],
    strangers: Mapping[str, Mapping[str, Estimate]],
    curves: Mapping[str, Tensor],
) -> dict[str, Any]:
    """Summarises the estimates of all seeds.

    Args:
        setting: data, networks and options of the evaluation.
        seeds: seeds, in the order of the estimates.
        estimates: estimates of each arm, seed by seed.
        strangers: estimates of ``test`` and ``training`` images in the place of a cohort.
        curves: LPIPS [P, N] to the nearest training image at each point of the paths, by pool of long paths.

    Returns:
        Content of results.json.
    """
    graded = setting.data.modality.ordered
    external = setting.external
    absent = {*(() if graded else GRADES), *(EXTERNAL if external is None else ())}
    measures = {key: measure for key, measure in MEASURES.items() if key not in absent}
    source = setting.source
    return {
        "arms": {arm: _content(_summaries(found, measures)) for arm, found in estimates.items()},
        "titles": {name: arm.title for name, arm in setting.arms.items()},
        "strangers": {column: _content(_summaries([found], measures)) for column, found in strangers.items()},
        "comparisons": [
            _comparison(estimates, first, second)
            for first, second in (*COMPARISONS, *LONG_COMPARISONS)
            if first in estimates and second in estimates
        ],
        "cost_ratios": _cost_ratios(estimates),
        "source_pairs": [
            {
                **pair.content(setting.data.class_names),
                "arms": {arm: _of_pair(estimates[arm], pair, number) for arm in ARMS},
            }
            for number, pair in enumerate(setting.source_pairs)
        ],
        "against_test_images": {arm: _against(estimates[arm], strangers["test"]) for arm in ARMS if ARMS[arm].pool},
        "measures": {key: asdict(measure) for key, measure in with_proof(measures, setting.infos[VERIFIER]).items()},
        "curves": {pool: _band(distances) for pool, distances in curves.items()},
        "version": bundle_version(),
        "seeds": list(seeds),
        "n_shadows": setting.n_shadows,
        "classifier": asdict(setting.classifier),
        "quotas": {setting.data.class_names[label]: quota for label, quota in setting.quotas.items()},
        "long": {"points": source.long_points, "pairs": source.long_pairs, "common_pairs": source.published_pairs},
        "source": source.settings,
        **setting.real.content(),
        "external": None if external is None else external.content(),
        "networks": {name: info["sha256"] for name, info in setting.infos.items()},
        "features": FEATURES,
        "lpips": LPIPS_TRUNK,
    }


def write_evaluation(output_dir: Path, results: dict[str, Any]) -> None:
    """Writes ``results.json``, ``report.html``, ``tables.md`` and the charts.

    Args:
        output_dir: folder for the files.
        results: results from `evaluation_results`.
    """
    write_json(output_dir / "results.json", results)
    pictures = _pictures(results)
    for name, picture in pictures.items():
        save_chart(picture, output_dir / f"{name}.png")
    _write_html(results, pictures, output_dir / "report.html")
    write_text(output_dir / "tables.md", markdown_tables(results))


def _summaries(seeds: Sequence[Mapping[str, Estimate]], keys: Iterable[str]) -> dict[str, Summary]:
    failed = next((found[""].reason for found in seeds if "" in found), "")
    if failed:
        return {key: Summary(reason=failed) for key in keys}
    return {
        key: over_seeds([found[key] for found in seeds], limits(key))
        for key in keys
        if all(key in found for found in seeds)
    }


def _cost_ratios(estimates: Mapping[str, Sequence[Mapping[str, Estimate]]]) -> dict[str, Any]:
    """Computes the ratio of CPU seconds per released image of each synthetic arm to random sampling with the gate."""
    seconds = {
        arm: [found["" if "" in found else "cpu_seconds"] for found in estimates[arm]] for arm in ARMS if ARMS[arm].pool
    }
    return {arm: ratio(mine, seconds["random_gate"]).content() for arm, mine in seconds.items()}


def _of_pair(seeds: Sequence[Mapping[str, Estimate]], pair: SourcePair, number: int) -> dict[str, Any]:
    keys = {measure: pair.key(number, measure) for measure in PAIR_MEASURES}
    found = _summaries(seeds, keys.values())
    return {measure: found[key].content() for measure, key in keys.items() if key in found}


def _content(summaries: Mapping[str, Summary]) -> dict[str, Any]:
    return {key: summary.content() for key, summary in summaries.items()}


def _comparison(estimates: Mapping[str, Sequence[Mapping[str, Estimate]]], first: str, second: str) -> dict[str, Any]:
    sides = [estimates[arm] for arm in (first, second)]
    timed = ("cpu_seconds",)  # compared by `_cost_ratios` alone
    shared = [key for key in MEASURES if key not in timed and all(key in found for side in sides for found in side)]
    kinds: dict[str, tuple[Callable[..., Summary], list[str]]] = {
        "difference": (difference, shared),
        "ratio": (ratio, [key for key in shared if key in RATIOS]),
    }
    return {
        "first": first,
        "second": second,
        **{
            name: {key: how(*([found[key] for found in side] for side in sides)).content() for key in keys}
            for name, (how, keys) in kinds.items()
        },
    }


def _against(seeds: Sequence[Mapping[str, Estimate]], test: Mapping[str, Estimate]) -> dict[str, Any]:
    """Computes the differences between an arm and test images in the place of a cohort."""
    keys = [key for key in PRIVACY if all(key in found for found in seeds) and key in test and not test[key].reason]
    return {key: difference([found[key] for found in seeds], [test[key]] * len(seeds)).content() for key in keys}


def _band(distances: Tensor) -> dict[str, Any]:
    """Computes quantiles of distances [P, N] over the paths of all seeds at each point."""
    low, middle, high = distances.double().quantile(torch.tensor(BAND, dtype=torch.float64), dim=0)
    rounded = {"low": low, "median": middle, "high": high}
    return {"paths": len(distances), **{name: [round(float(v), 4) for v in side] for name, side in rounded.items()}}


def _pictures(results: dict[str, Any]) -> dict[str, Figure]:
    columns = [
        (
            MEASURES[key].title,
            [results["arms"][arm].get(key, {}) for arm in ARMS],
            results["strangers"]["test"].get(key),
        )
        for key in CHARTED
    ]
    return {
        "paths": distance_chart(results["curves"], results["lpips"], results["real"]["train"]["images"]),
        "arms": arms_chart([ARMS[arm].title for arm in ARMS], columns),
    }


def _write_html(results: dict[str, Any], pictures: Mapping[str, Figure], path: Path) -> None:
    write_html(
        path,
        Path(__file__).parent / "report.html.j2",
        r=results,
        arms=ARMS,
        paper={key: measure for key, measure in {**PAPER, **EXTERNAL}.items() if key in results["measures"]},
        privacy=PRIVACY,
        placebo=PLACEBO,
        fidelity=FIDELITY,
        measures=MEASURES,
        ratios=RATIOS,
        differences=[key for key in DIFFERENCES if key in results["measures"]],
        long_keys=LONG_KEYS,
        against_test=AGAINST_TEST,
        cost=COST,
        pair_measures=PAIR_MEASURES,
        pair_title=pair_title,
        pictures={name: Markup(as_svg(picture)) for name, picture in pictures.items()},
        show=cell_text,
    )
