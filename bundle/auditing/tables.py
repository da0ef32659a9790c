# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The public results of an audit as a Markdown document that is complete in itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bundle.files import bundle_version
from bundle.markup import markdown_table, markdown_text, three_digits

__all__ = ["audit_summary", "markdown_tables"]

COLUMNS = {"cohort": "cohort", "test": "test images", "training": "training images"}
# Number of characters of a hash.
HASH = 12


def markdown_tables(results: Mapping[str, Any]) -> str:
    """Returns the verdict, the controls and all measures, with what was audited and how.

    It names no place, no machine and no file, so that it can be published as it is.

    Args:
        results: content of results.json.
    """
    single = results["single_images"]
    parts = [
        *_heading(results),
        "## Controls",
        "What the audit finds in images whose origin is known; where a requirement is stated, the audit needs it.",
        markdown_table(
            [
                ["control", "found", "required", "met"],
                *(
                    [
                        markdown_text(control["title"]),
                        _text(control, True),
                        markdown_text(control["required"]) or "-",
                        {True: "yes", False: "**no**", None: "-"}[control["passed"]],
                    ]
                    for control in results["controls"]
                ),
            ]
        ),
        *_not_found(results["not_found"]),
        "## Nearness to members, and to people whom no network has seen",
        *_nearness(results),
        "## Single images",
        f"{single['flagged']} images are nearer to a training image, as a whole or in part, than chance allows (false "
        f"alarms in {single['false_alarm_rate']:.1%} of cohorts).",
    ]
    for key, title in (("privacy", "Privacy"), ("fidelity", "Fidelity and variety")):
        sentence = "Test and training images in the place of the cohort show each measure without and with copies."
        parts += [f"## {title}", sentence, _measures(results[key])]
    for name, rows in results["per_class"].items():
        parts += [f"## Class {markdown_text(name)}", "The same measures within the class.", _measures(rows)]
    return "\n\n".join(parts) + "\n"


def audit_summary(results: Mapping[str, Any]) -> str:
    """Returns the part of `markdown_tables` that a cohort's datasheet repeats: the verdict and what it rests on.

    Args:
        results: content of results.json.
    """
    controls = [control["passed"] for control in results["controls"] if control["required"]]
    return "\n\n".join(
        [
            _verdict(results["verdict"]),
            f"Compared with real images: {_sides(results)}. Of {len(controls)} required controls, which ask whether "
            f"the audit finds copies, {controls.count(True)} were met.",
            *_nearness(results),
            "In brackets: 95 % intervals.",
        ]
    )


def _nearness(results: Mapping[str, Any]) -> list[str]:
    rows = [
        [row["title"], *(_text(row[side], row["is_share"]) for side in ("members", "placebo", "difference"))]
        for row in results["placebo"]
    ]
    head = ["measure", "towards training images", "towards as many test images", "difference"]
    return [
        "Only the difference can come from what the generator has learnt of its patients.",
        markdown_table([head, *rows]),
    ]


def _sides(results: Mapping[str, Any]) -> str:
    extra = f" ({results['extra_images']} of them extra)" if results["extra_images"] else ""
    sides = (f"{side['images']} {role} of {side['patients']} patients" for role, side in results["real"].items())
    return f"{', '.join(sides)}{extra}"


def _verdict(verdict: Mapping[str, Any]) -> str:
    title, reasons = markdown_text(verdict["title"]), markdown_text(" ".join(verdict["reasons"]))
    return f"**Verdict {verdict['exit_code']}: {title}.** {reasons}"


def _not_found(kinds: Sequence[str]) -> list[str]:
    if not kinds:
        return []
    return [
        f"**Not found reliably** (fewer than 9 in 10): {markdown_text('; '.join(kinds))}. The cohort may contain such "
        "copies although none is flagged."
    ]


def _heading(results: Mapping[str, Any]) -> list[str]:
    cohort = results["cohort"]
    labels = ", ".join(f"{count} {markdown_text(name)}" for name, count in (cohort["labels"] or {}).items())
    return [
        f"# Audit: {markdown_text(results['modality'])}, {cohort['images']} synthetic images",
        "As `audit` of the PLAN bundle wrote it; docs/audit.md explains measures, controls and verdict.",
        "\n".join(
            [
                f"- Cohort: {cohort['images']} images{f' ({labels})' if labels else ''}, sha256 "
                f"`{cohort['sha256'][:HASH]}`, compared at {results['resolution']} px.",
                f"- Real images: {_sides(results)}.",
                f"- Seed: {results['seed']}.",
                f"- Version of the bundle: {bundle_version()}.",
                "- Networks: "
                + ", ".join(f"{name} `{info['sha256'][:HASH]}`" for name, info in results["networks"].items())
                + ".",
                f"- Features: {results['features']}; LPIPS: {results['lpips']}.",
            ]
        ),
        _verdict(results["verdict"]),
        "In brackets: 95 % intervals. A dash marks what does not apply.",
    ]


def _measures(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = [
        [
            row["title"],
            *(_text(row["figures"].get(column), row["is_share"]) for column in COLUMNS),
            row["ideal"],
        ]
        for row in rows
    ]
    return markdown_table([["measure", *COLUMNS.values(), "ideal"], *cells])


def _text(value: Mapping[str, Any] | None, is_share: bool) -> str:
    if value is None:
        return "-"
    if "not_estimable" in value:
        return f"not estimable, because {value['not_estimable']}"
    if is_share:
        return f"{value['value']:.1%} [{value['low']:.1%}, {value['high']:.1%}]"
    return f"{three_digits(value['value'])} [{three_digits(value['low'])}, {three_digits(value['high'])}]"
