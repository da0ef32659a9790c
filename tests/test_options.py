# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import monai.bundle
import pytest
import torch
from pydantic import Field, create_model

from bundle.command_line import plain_errors
from bundle.commands.common import Formats, Pattern, Resolution
from bundle.option_types import (
    Count,
    Device,
    File,
    Folder,
    Folders,
    OptionalFilePath,
    OutputFolder,
    Positive,
    RequiredFolders,
    Seeds,
    one_of,
)
from bundle.options import OptionError, Options, validate
from tests.conftest import ROOT

CONFIG = {
    "imports": ["$import bundle.commands", "$import bundle", "$import pathlib"],
    "check_options": "$bundle.commands.check_options('generate')",
    "seed": 0,
    "n_images": 64,
    "output_dir": "$'output/' + str(@seed)",
    "network_def": {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": "@n_images", "kernel_size": 3},
    "witness": "$pathlib.Path('/nonexistent')",
    "generate": [
        "$@check_options",
        "$@witness.write_text(str(@seed) + ' ' + str(@network_def.in_channels))",
    ],
}


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "configs" / "plan.json"
    path.parent.mkdir()
    witness = f"$pathlib.Path({str(tmp_path / 'witness')!r})"
    path.write_text(json.dumps({**CONFIG, "witness": witness}))
    (path.parent / "metadata.json").write_text("{}")
    return path


def run(config_file: Path | list[str], **overrides: Any) -> None:
    monai.bundle.run(
        "generate", config_file=config_file if isinstance(config_file, list) else str(config_file), **overrides
    )


def refusal(config_file: Path | list[str], **overrides: Any) -> str:
    with pytest.raises(RuntimeError) as raised:
        run(config_file, **overrides)
    assert isinstance(raised.value.__cause__, OptionError)
    return str(raised.value.__cause__)


def test_known_options_and_nested_ids_pass(config_file: Path, tmp_path: Path) -> None:
    run(config_file, seed=7, n_images=3, **{"network_def#in_channels": 2})
    assert (tmp_path / "witness").read_text() == "7 2"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("sed", "seed"),
        ("n_image", "n_images"),
        ("config_fil", "config_file"),
        ("network_def#channels", "network_def#in_channels"),
        ("network_def::kernel", "network_def#kernel_size"),
    ],
)
def test_an_unknown_option_is_refused_before_anything_runs(
    config_file: Path, tmp_path: Path, name: str, nearest: str
) -> None:
    message = refusal(config_file, **{name: 7})
    assert f"--{name} is not an option of" in message
    assert f"Did you mean --{nearest}?" in message
    assert "n_images, n_points, seed" in message
    assert not (tmp_path / "witness").exists()


def test_a_misspelt_name_in_an_overlay_is_refused_and_a_new_one_is_not(config_file: Path, tmp_path: Path) -> None:
    overlay = config_file.parent / "overlay.json"
    overlay.write_text(json.dumps({"n_image": 4}))
    message = refusal([str(config_file), str(overlay)])
    assert message == f"{overlay} sets n_image, which nothing uses. Did you mean n_images?"
    overlay.write_text(json.dumps({"mine": 4, "seed": 2}))
    run([str(config_file), str(overlay)])
    assert (tmp_path / "witness").read_text() == "2 1"


def test_a_former_name_is_told_with_the_one_of_today(config_file: Path) -> None:
    message = refusal(config_file, trunk_file="weights.pth")
    assert message == f"--trunk_file is no longer an option of {config_file}: it is called --squeezenet_file now."


def test_ids_of_every_overlay_are_known(config_file: Path, tmp_path: Path) -> None:
    overlay = config_file.parent / "overlay.json"
    overlay.write_text(json.dumps({"extra": 1, "seed": 5}))
    files = [str(config_file), str(overlay)]
    run(files, extra=2)
    assert (tmp_path / "witness").read_text() == "5 1"
    assert "--extra is not an option" in refusal(config_file, extra=2)
    assert "Did you mean --extra?" in refusal(files, xtra=2)


def test_overlay_in_front_of_what_it_changes_is_refused(config_file: Path, tmp_path: Path) -> None:
    overlay = config_file.parent / "overlay.json"
    overlay.write_text(json.dumps({"seed": 5}))
    message = refusal([str(overlay), str(config_file)])
    assert f"{overlay} sets seed in vain: {config_file}" in message
    assert f"Name {overlay} behind {config_file}." in message
    assert not (tmp_path / "witness").exists()
    overlay.write_text(json.dumps({"seed": 0, "extra": 1}))  # changes nothing that the other sets
    run([str(overlay), str(config_file)])


def test_options_from_an_args_file_are_checked(config_file: Path) -> None:
    arguments = config_file.parent / "args.json"
    arguments.write_text(json.dumps({"config_file": str(config_file), "sed": 7}))
    with pytest.raises(RuntimeError) as raised:
        monai.bundle.run("generate", args_file=str(arguments))
    assert "--sed is not an option" in str(raised.value.__cause__)


def test_what_tracking_adds_is_known_only_with_tracking(config_file: Path, tmp_path: Path) -> None:
    tracking = {"handlers_id": {}, "configs": {"run_name": None, "save_execute_config": False}}
    run(config_file, tracking=tracking, run_name="mine", save_execute_config=False)
    assert (tmp_path / "witness").exists()
    assert "--run_name is not an option" in refusal(config_file, run_name="mine")


def test_a_second_run_id_is_not_swallowed(config_file: Path) -> None:
    assert "'evaluate' is not an id" in refusal(config_file, init_id="evaluate")


def test_impossible_values_are_listed_together(config_file: Path) -> None:
    assert refusal(config_file, seed=-1, n_images=0).splitlines() == [
        "--n_images must be at least 1, not 0. The nearest is 1.",
        "--seed must be at least 0, not -1. The nearest is 0.",
    ]
    assert refusal(config_file, sed=-1, n_image=0).count("\n") == 1


def command_line(config_file: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", "generate", "--config_file", "configs/plan.json", *options],
        cwd=config_file.parents[1],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_the_command_line_gets_a_short_message_and_exit_code_2(config_file: Path, tmp_path: Path) -> None:
    done = command_line(config_file, "--sed", "7")
    assert done.returncode == 2
    assert "error: --sed is not an option of configs/plan.json. Did you mean --seed?" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "witness").exists()


def test_letters_that_a_terminal_does_not_have_are_no_error(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    done = command_line(config_file, "--witness", "$print(chr(1085))")
    assert "\\u043d" in done.stdout
    assert "UnicodeEncodeError" not in done.stderr


def test_later_errors_of_the_bundle_show_their_cure_and_others_their_traceback(config_file: Path) -> None:
    done = command_line(config_file, "--witness", "$__import__('bundle.data').data.get_modality('xrai')")
    assert done.returncode == 1
    assert "error: unknown modality 'xrai'; did you mean 'xray'?" in done.stderr
    assert "Traceback" not in done.stderr
    done = command_line(config_file, "--witness", "$1 / 0")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError" in done.stderr


@pytest.mark.parametrize(
    ("expression", "code", "line"),
    [
        ("(_ for _ in ()).throw(KeyboardInterrupt())", 130, "error: Interrupted. The same command resumes"),
        ("__import__('os').kill(__import__('os').getpid(), 15)", 143, "error: Terminated. The same command resumes"),
        ("open('/dev/full', 'w', buffering=1).write('x' + chr(10))", 1, "error: The disk is full: A file cannot be"),
    ],
)
def test_the_machine_and_the_user_end_a_command_in_one_line(
    config_file: Path, expression: str, code: int, line: str
) -> None:
    done = command_line(config_file, "--witness", f"${expression}")
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert next(text for text in done.stderr.splitlines() if text.startswith("error: ")).startswith(line)


def test_output_folder_of_300_letters_is_refused_in_one_line(config_file: Path) -> None:
    done = command_line(config_file, "--output_dir", "x" * 300)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert "error: " in done.stderr


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "Interrupted"),
        (OSError(28, "No space left on device", "x.pt"), 1, "The disk is full: x.pt"),
        (OptionError(["class \x1b[31m is unknown."]), 1, "class \\x1b[31m is unknown."),
    ],
)
def test_plain_errors_know_the_machine(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, words: str
) -> None:
    with pytest.raises(SystemExit) as stopped, plain_errors():
        raise error
    assert stopped.value.code == code
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert words in shown


def test_plain_errors_are_of_the_bundles_types_or_foreseen_and_others_pass(capsys: pytest.CaptureFixture[str]) -> None:
    for error, foreseen in ((OptionError(["n must be 1."]), ()), (FileExistsError("n must be 1."), (FileExistsError,))):
        with pytest.raises(SystemExit) as stopped, plain_errors(*foreseen):
            raise error
        assert stopped.value.code == 1
        assert capsys.readouterr().err == "error: n must be 1.\n"
    with pytest.raises(ValueError, match="unforeseen"), plain_errors(FileExistsError):
        raise ValueError("unforeseen")


def problem(kind: Any, value: object) -> str | None:
    """Says what is wrong with a value as an option of that type; None if nothing is."""
    model = create_model("Model", __base__=Options, option=(kind, ...))
    found = validate(model, {"option": value})
    assert all(line.startswith("--option ") for line in found)
    return "; ".join(found) or None


@pytest.mark.parametrize(
    ("kind", "good", "bad", "nearest"),
    [
        (Count, 1, 0, "nearest is 1"),
        (Annotated[int, Field(ge=0, le=10)], 10, 11, "must be at most 10, not 11. The nearest is 10."),
        (Count, 2, 2.6, "whole number"),
        (Count, 2, True, "whole number"),
        (Count, 2, "many", "whole number"),
        (Count, 2, "", "whole number"),
        (Count | None, None, 0, "nearest is 1"),
        (Positive, 0.5, 0, "above 0"),
        (Positive, 3, float("nan"), "finite number"),
        (Positive, 3, "", "a number"),
        (Annotated[float, Field(ge=0, le=1)], 0, -0.5, "must be at least 0, not -0.5. The nearest is 0."),
        (Annotated[float, Field(gt=-1, le=1)], -0.5, "null", "a number, not 'null'"),
        (Resolution, 64, 100, "nearest is 128"),
        (Resolution, 64, "big", "nearest is"),
        (Annotated[str, one_of(("plan", "published"))], "plan", "publishd", "nearest is published"),
        (Annotated[str, one_of(("plan", "published"))], "plan", ["plan"], "must be one of plan, published"),
        (Seeds, [0, 1], [0, -1], "must be at least 0, not -1"),
        (Seeds, (0, 1), [], "at least one"),
        (Seeds, 3, [3, 3], "none twice"),
        (bool, True, "yes", "True or False"),
        (bool, False, 1, "True or False"),
        (Formats, "png,dicom", "png,dcm", "not 'dcm'. The nearest is dicom. PNG files are always written."),
        (Formats, ["nifti"], [], "must name some of png, dicom, nifti, as in dicom,nifti"),
        (Pattern, r"person(\d+)_", "person(", "regular expression"),
        (Pattern, "(?:a|b)(c)", "abc", "one group"),
        (Device, "cpu", "gpu", "This machine has"),
        (Device, torch.device("cpu"), f"cuda:{torch.cuda.device_count()}", "does not find it"),
        (Device, "cpu", "", "name of a PyTorch device"),
    ],
)
def test_types(kind: Any, good: object, bad: object, nearest: str) -> None:
    assert problem(kind, good) is None
    assert nearest in str(problem(kind, bad))


def test_paths(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    file = tmp_path / "weights.pt"
    file.touch()
    assert problem(Folder, str(tmp_path)) is None
    assert "Did you mean" in str(problem(Folder, str(tmp_path / "image")))
    assert "is not a folder" in str(problem(Folder, str(file)))
    assert problem(File, file) is problem(File, None) is None
    assert problem(OptionalFilePath, str(tmp_path / "none.pt")) is problem(OptionalFilePath, None) is None
    assert "path of a file" in str(problem(OptionalFilePath, 7))
    assert "is empty" in str(problem(File, ""))
    assert "does not exist" in str(problem(File, str(tmp_path / "none" / "x.pt")))
    assert problem(OutputFolder, str(tmp_path / "new" / "deep")) is None
    assert "is empty" in str(problem(OutputFolder, ""))
    assert "is a file" in str(problem(OutputFolder, str(file / "below")))
    assert "path of a folder" in str(problem(OutputFolder, 7))


@pytest.mark.parametrize("kind", [Folder, File, OutputFolder, Folders, RequiredFolders])
def test_a_path_that_is_not_expanded_is_refused_with_what_it_stands_for(kind: Any) -> None:
    assert str(Path("~/images").expanduser()) in str(problem(kind, "~/images"))
    assert "cannot be printed" in str(problem(kind, "images\x1b[2J"))
    assert "# in a list" in str(problem(Folders, ["images", "run::1"]))


def test_what_is_not_given_is_refused_only_where_it_is_required() -> None:
    for value in ("", None):
        assert problem(Folders, value) is None
        assert problem(RequiredFolders, value) == "--option must be given."


@pytest.mark.parametrize("value", ["@seed", "%configs/plan.json::seed", "$1"])
def test_what_monai_would_replace_is_refused(config_file: Path, value: str) -> None:
    assert f"begins with {value[0]}, which MONAI would" in refusal(config_file, output_dir=value)


def test_a_default_that_is_made_of_more_than_options_is_left_alone(config_file: Path, tmp_path: Path) -> None:
    content = json.loads(config_file.read_text())
    content |= {"settings": "${'seed': @seed} | @check_options", "output_dir": "$'output/' + str(@settings['seed'])"}
    content["tracking_uri"] = "$@output_dir + '/runs'"
    content["models_dir"] = "$'nowhere' + str(@seed)"
    config_file.write_text(json.dumps(content))
    assert refusal(config_file, seed=3).startswith("--models_dir nowhere3 does not exist")
    run(config_file, seed=3, models_dir=str(tmp_path))
    assert (tmp_path / "witness").read_text().startswith("3 ")


def test_python_in_an_option_is_refused_before_it_runs(config_file: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    message = refusal(config_file, output_dir=f"$__import__('pathlib').Path({str(trap)!r}).touch()")
    assert "begins with $, which MONAI would run as Python. Give a value." in message
    assert not trap.exists()


def test_what_changes_the_configuration_besides_options_is_told(config_file: Path, tmp_path: Path) -> None:
    content = json.loads(config_file.read_text())
    content["generate"][1] = "$@witness.write_text(str(@check_options))"
    config_file.write_text(json.dumps(content))

    def told(files: Path | list[str], **overrides: Any) -> dict[str, Any]:
        run(files, **overrides)
        return dict(ast.literal_eval((tmp_path / "witness").read_text()))

    assert told(config_file, seed=7) == {}
    changed = told(config_file, **{"network_def#in_channels": 2})
    assert changed == {"changed_configuration": {"network_def#in_channels": 2}}
    overlay = config_file.parent / "overlay.json"
    overlay.write_text(json.dumps({"seed": 3, "network_def#kernel_size": "/home/surname/5"}))
    (digest,) = told([str(config_file), str(overlay)])["changed_configuration"].values()
    assert digest.startswith("sha256:")
    assert "surname" not in digest


def test_a_hash_in_a_value_is_kept(config_file: Path, tmp_path: Path) -> None:
    content = json.loads(config_file.read_text())
    content["generate"] = ["$@check_options", "$@witness.write_text(@output_dir + ' ' + str(@seed))"]
    config_file.write_text(json.dumps(content))
    folder = tmp_path / "run #1 (a) @home %x $y"
    run(config_file, output_dir=str(folder), seed=3)
    assert (tmp_path / "witness").read_text() == f"{folder} 3"
