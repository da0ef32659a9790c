# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The tables of an evaluation in Markdown, complete in themselves, and the text of their cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bundle.auditing.catalogue import FIDELITY, PRIVACY
from bundle.evaluation.arms import ARMS
from bundle.evaluation.catalogue import EXTERNAL, MEASURES, PAPER, PLACEBO
from bundle.evaluation.sources import PAIR_MEASURES
from bundle.markup import markdown_table, markdown_text

__all__ = ["AGAINST_TEST", "COST", "DIFFERENCES", "LONG_KEYS", "RATIOS", "cell_text", "markdown_tables", "pair_title"]

#: Measures of realism and variety that are shown beside the cost of an image.
COST = ("precision", "recall", "duplicates", "distinct", "cpu_seconds")
#: Measures for which the ratio of two arms is reported.
RATIOS = ("mml", "lpips_p5", "kid_all", "frechet_all", "distinct", "smoothness", "path_variety")
#: Measures whose differences between arms are in the tables; results.json has those of all measures.
DIFFERENCES = (
    "accuracy",
    "kappa",
    "external_accuracy",
    "external_auc",
    "external_kappa",
    "mia_accuracy",
    "lira_auc",
    "copy_rate",
    "copy_rate_specific",
    "reidentified_specific",
    "lpips_p5",
    "mml",
    "mml_specific",
    "kid_all",
    "precision",
    "recall",
    "duplicates",
    "distinct",
    "mislabelled",
    "unrealistic",
    "label_accuracy",
)
#: Measures whose differences from test images are in the tables.
AGAINST_TEST = ("copy_rate", "dcr_p5", "nndr_p5", "lpips_p5", "mml", "reidentified", "same_patient_named")
#: Reasons for which the gate drops images of long paths, and measures of these in the tables.
LOST = ("mislabelled", "unrealistic")
LONG_KEYS = ("smoothness", "path_variety", "mml", "lpips_p5", "copy_rate", "kid_all", "frechet_all", *LOST)

# Number of characters of a hash.
HASH = 12


def cell_text(cell: Mapping[str, Any] | None, is_share: bool, signed: bool = False) -> str:
    """Formats a cell: mean, standard deviation over the seeds, interval.

    Args:
        cell: content of a `bundle.evaluation.summaries.Summary`; None for a dash.
        is_share: whether to write percent, or points if signed.
        signed: whether the value is a difference.
    """
    if not cell:
        return "-"
    if "not_estimable" in cell:
        return f"not estimable, because {cell['not_estimable']}"
    factor = 100.0 if is_share else 1.0
    values = [factor * cell[name] for name in ("value", "low", "high")]

    def text(value: float) -> str:
        if is_share:
            return f"{value:+.1f}" if signed else f"{value:.1f}"
        size = abs(value)
        digits = 0 if size >= 100 else 1 if size >= 10 else 3 if size >= 0.1 else 4
        return f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"

    spread = f" ± {text(factor * cell['spread']).lstrip('+')}" if "spread" in cell else ""
    unit = (" points" if signed else " %") if is_share else ""
    return f"{text(values[0])}{spread}{unit} [{text(values[1])}, {text(values[2])}]"


def markdown_tables(results: Mapping[str, Any]) -> str:
    """Returns a Markdown document of all tables, with what they are of and how they were made.

    It names no place and no machine, so that it can be published as it is.

    Args:
        results: content of results.json.
    """
    return "\n\n".join([*_heading(results), *_arms(results), *_sources(results), *_comparisons(results)]) + "\n"


def _heading(results: Mapping[str, Any]) -> list[str]:
    real, quotas, long = results["real"], results["quotas"], results["long"]
    extra = f" ({results['extra_images']} of them extra)" if results["extra_images"] else ""
    outside = results["external"]
    elsewhere = f"; external: {outside['images']} of {outside['patients']} patients" if outside else ""
    sides = ", ".join(f"{real[role]['images']} {role} of {real[role]['patients']} patients" for role in real)
    classes = ", ".join(f"{count} {markdown_text(name)}" for name, count in quotas.items())
    source, classifier = results["source"], results["classifier"]
    walk = ", ".join(
        f"{name} {value}"
        for part in (source["walk"]["balanced"], source["objectives"]["balanced"])
        for name, value in part.items()
    )
    hashes = [*source["models"].items(), *results["networks"].items()]
    return [
        f"# Evaluation: {markdown_text(results['modality'])}, {results['resolution']} px",
        "As `evaluate` of the PLAN bundle wrote it; docs/evaluation.md explains arms, measures and intervals.",
        "\n".join(
            [
                f"- Real images: {sides}{extra}{elsewhere}.",
                f"- Images of each synthetic arm: {sum(quotas.values())} ({classes}).",
                f"- Seeds: {', '.join(map(str, results['seeds']))}. Seeds vary end points, walks, classifiers and "
                "attacks; all networks below are one set.",
                f"- Options: {source['n_points']} points a path; long paths of {long['points']} points, "
                f"{long['pairs']} of each class, {long['common_pairs']} of them common with the published algorithm; "
                f"{results['n_shadows']} shadow models; {classifier['epochs']} epochs.",
                f"- Walk, on {source['guides']} guides: {walk}.",
                f"- Version of the bundle: {results['version']}.",
                "- Networks: " + ", ".join(f"{name} `{digest[:HASH]}`" for name, digest in hashes) + ".",
                f"- Features: {results['features']}; LPIPS: {results['lpips']}.",
            ]
        ),
        "Cells: mean ± standard deviation over the seeds [95 % interval over seeds and over patients or paths]. A dash "
        "marks what does not apply.",
    ]


def _by_measure(results: Mapping[str, Any], keys: Sequence[str], columns: Sequence[str]) -> str:
    """Returns a table with a row for each measure and a column for each arm."""
    titles = {**results["titles"], "test": "test images", "training": "training images"}
    measured = {**results["arms"], **results["strangers"]}
    rows = [
        [
            MEASURES[key].title,
            *(
                cell_text(measured[column].get(key), MEASURES[key].is_share, key.endswith("_specific"))
                for column in columns
            ),
        ]
        for key in keys
    ]
    return markdown_table([["", *(titles[column] for column in columns)], *rows])


def _arms(results: Mapping[str, Any]) -> list[str]:
    titles, synthetic = results["titles"], [arm for arm in ARMS if ARMS[arm].pool]
    against = [
        [
            f"{titles[arm]} less test images",
            *(cell_text(found.get(key), MEASURES[key].is_share, True) for key in AGAINST_TEST),
        ]
        for arm, found in results["against_test_images"].items()
    ]
    costs = [
        [
            titles[arm],
            *(cell_text(results["arms"][arm].get(key), MEASURES[key].is_share) for key in COST),
            cell_text(results["cost_ratios"].get(arm), False),
        ]
        for arm in synthetic
    ]
    long_arms = [arm for arm in titles if arm in results["arms"] and arm not in ARMS]
    audited = [*PRIVACY, *FIDELITY, "distinct", "recognised", "mislabelled", "unrealistic"]
    return [
        "## The paper's measures",
        "Utility of the arm's images for training, attacks on the trained classifier, and distance to real images; the "
        "arm Real shows what an attack finds where the classifier saw the members.",
        _by_measure(results, [key for key in (*PAPER, *EXTERNAL) if key in results["measures"]], list(ARMS)),
        "## Realism, variety and cost",
        "CPU seconds are those of walk, synthesis and gate for a released image on the machine of this run, with the "
        "images that the gate drops; they do not compare between machines, their ratios do roughly.",
        markdown_table(
            [["", *(MEASURES[key].title for key in COST), f"CPU seconds by {titles['random_gate']}"], *costs]
        ),
        "## Nearness to members, and to people whom no network has seen",
        "Only the member-specific difference can come from what the generator has learnt of its patients.",
        _by_measure(results, list(PLACEBO), synthetic),
        "## Measures of the audit",
        "The two right columns show test and training images in the place of a cohort.",
        _by_measure(results, audited, [*synthetic, "test", "training"]),
        "## Differences from held-out test images",
        "Below 0 for a rate, above 0 for a distance: further from training patients than test images are.",
        markdown_table([["", *(MEASURES[key].title for key in AGAINST_TEST)], *against]),
        f"## Paths of {results['long']['points']} points",
        "Every point of each long path, ends included and without the gate.",
        _by_measure(results, LONG_KEYS, long_arms),
    ]


def _sources(results: Mapping[str, Any]) -> list[str]:
    """Returns the section on pairs of sources; empty if there is no pair."""
    if not results["source_pairs"]:
        return []
    rows = [
        [pair_title(pair, markdown_text), MEASURES[key].title]
        + [cell_text(pair["arms"][arm].get(key), MEASURES[key].is_share) for arm in ARMS]
        for pair in results["source_pairs"]
        for key in PAIR_MEASURES
    ]
    return [
        "## Accuracy within pairs of sources",
        "The same classifiers on the test images of one source of each class, in brackets their number: only where "
        "both classes are of one source can the source not give the class away.",
        markdown_table([["", "", *(results["titles"][arm] for arm in ARMS)], *rows]),
    ]


def pair_title(pair: Mapping[str, Any], escaped: Any = str) -> str:
    """Returns the title of a pair of sources.

    Args:
        pair: entry of ``source_pairs`` in results.json.
        escaped: function that escapes names.
    """
    sides = zip(pair["classes"], pair["sources"], pair["images"], strict=True)
    title = " / ".join(f"{escaped(name)} of {escaped(source)} ({count})" for name, source, count in sides)
    return f"{title}, one source" if pair["sources"][0] == pair["sources"][1] else title


def _comparisons(results: Mapping[str, Any]) -> list[str]:
    kinds = (
        (
            "difference",
            "less",
            [key for key in DIFFERENCES if key in results["measures"]],
            "Paired, on the same test patients and, for paths, the same end points; an interval that holds 0 shows no "
            "difference.",
        ),
        ("ratio", "by", list(RATIOS), "Likewise; an interval that holds 1 shows no difference."),
    )
    parts = []
    for kind, word, chosen, sentence in kinds:
        rows = [
            [
                f"{results['titles'][found['first']]} {word} {results['titles'][found['second']]}",
                *(
                    cell_text(found[kind].get(key), MEASURES[key].is_share and kind == "difference", word == "less")
                    for key in chosen
                ),
            ]
            for found in results["comparisons"]
            if any(key in found[kind] for key in chosen)  # no ratio is defined with the real arm
        ]
        table = markdown_table([[kind, *(MEASURES[key].title for key in chosen)], *rows])
        parts += [f"## {kind.capitalize()}s between arms", sentence, table]
    return parts
