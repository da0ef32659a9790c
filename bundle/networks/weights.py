# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Saves and loads weight files: a flat fp16 state dict (.pt, tensors only) and a JSON file that describes it.

The JSON holds the SHA-256 of the weights and, in ``json_sha256``, that of all its other entries, so that accidental
changes of a threshold, a class name or a score are detected. The hash does not protect against deliberate edits, which
can recompute it; the entries are therefore also checked for consistency with each other and with the network.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bundle.class_names import class_names_problem, name_problem, shown
from bundle.files import content_digest, save_tensors, sha256_file, write_json

__all__ = [
    "NETWORKS",
    "UnsealedError",
    "WeightsError",
    "fill_network",
    "half_state",
    "load_weights",
    "read_info",
    "register_network",
    "save_weights",
    "seal_weights",
    "write_info",
]

FORMAT = 1
NETWORKS: dict[str, type[nn.Module]] = {}
HASH = "json_sha256"
# Largest number of characters of another library's error that a message quotes.
MOST_REPEATED = 300


class WeightsError(ValueError):
    """Weights that are missing, damaged, or do not fit the network or the other networks."""


class UnsealedError(WeightsError):
    """Weights of an earlier version, whose JSON has no hash of its own entries."""


def register_network(network_class: type[nn.Module]) -> type[nn.Module]:
    """Class decorator that lets weight files name a class; instances keep their constructor's ``arguments``."""
    NETWORKS[network_class.__name__] = network_class
    return network_class


def save_weights(network: nn.Module, path: str | os.PathLike[str], info: dict[str, Any]) -> None:
    """Writes the weights as fp16 and then the JSON beside them, which completes the pair.

    Args:
        network: instance of a registered class, with its constructor's ``arguments``.
        path: path of the ``.pt`` file.
        info: further entries of the JSON: modality, resolution, classes, split hash, scores and so on.

    Raises:
        WeightsError: a weight is not finite in half precision, or an entry is invalid.
    """
    path = Path(path)
    state = half_state(network)
    spoilt = _not_finite(state)
    if spoilt:
        raise WeightsError(
            f"{path} is not written: {spoilt} holds values that are no numbers in half precision. Train with a lower "
            f"learning rate."
        )
    described = {**info, "format": FORMAT, "network": type(network).__name__, "arguments": network.arguments}
    problem = _entries_problem(_plain(described))
    if problem:
        raise WeightsError(f"{path} is not written: {problem}. Give the network and its data fitting descriptions.")
    save_tensors(path, state)
    write_info(path, {**described, "sha256": sha256_file(path)})


def half_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """Returns a network's state dict on the CPU as it is saved, with floating-point tensors in fp16."""
    return {
        key: (value.detach().cpu().half() if value.is_floating_point() else value.detach().cpu()).contiguous()
        for key, value in network.state_dict().items()
    }


def write_info(path: str | os.PathLike[str], info: dict[str, Any]) -> None:
    """Writes the JSON beside a ``.pt`` file, with a hash of its entries; numbers that are not finite become null.

    Args:
        path: path of the ``.pt`` file.
        info: complete content, as `save_weights` creates it or `read_info` returns it.
    """
    content = {key: value for key, value in _plain(info).items() if key != HASH}
    write_json(Path(path).with_suffix(".json"), {**content, HASH: _digest(content)})


def read_info(path: str | os.PathLike[str], required: Iterable[str] = ()) -> dict[str, Any]:
    """Reads and checks the JSON beside a ``.pt`` file.

    Args:
        path: path of the ``.pt`` file.
        required: names of entries that must be present; a dot separates the levels of nested entries:
            ``scores.threshold``.

    Returns:
        Content of the JSON, with a valid hash and consistent entries of the right types.

    Raises:
        UnsealedError: the JSON was written by an earlier version without a hash.
        WeightsError: a file of the pair is missing, or the JSON was not written by `save_weights` or changed later.
    """
    path = Path(path)
    json_path = path.with_suffix(".json")
    info = _parsed(path)
    if HASH not in info:
        raise UnsealedError(
            f"{json_path} was written by an earlier version and has no hash over itself. If nobody has changed it, "
            f"python -m scripts.seal {path.parent} adds one; else copy the pair of files anew."
        )
    if info[HASH] != _digest({key: value for key, value in info.items() if key != HASH}):
        raise WeightsError(
            f"{json_path} was changed after it was written (other hash over its entries). Copy the pair of files anew, "
            f"or train the network anew."
        )
    _check_entries(json_path, info, required)
    return info


def load_weights(
    path: str | os.PathLike[str], device: str | torch.device = "cpu", required: Iterable[str] = ()
) -> tuple[nn.Module, dict[str, Any]]:
    """Builds the network that the JSON describes and loads its weights; the keys must match exactly.

    Args:
        path: path of the ``.pt`` file, with its JSON beside it.
        device: device of the network.
        required: names of entries of the JSON that must be present, see `read_info`.

    Returns:
        The network, in fp32, in evaluation mode and without gradients for its parameters; and the JSON's content.

    Raises:
        UnsealedError: see `read_info`.
        WeightsError: a file is missing or damaged, a weight is not finite, or the two files do not belong together.
    """
    info = read_info(path, required)
    return _filled(Path(path), info).to(device), info


def seal_weights(path: str | os.PathLike[str]) -> tuple[dict[str, Any], bool]:
    """Adds the hash to the JSON of weights that an earlier version has written, if they pass all other checks.

    Args:
        path: path of the ``.pt`` file.

    Returns:
        The JSON's content, and whether the hash was added.

    Raises:
        WeightsError: see `load_weights`; an existing hash that is wrong is not replaced.
    """
    path = Path(path)
    info = _parsed(path)
    if HASH in info:
        return load_weights(path)[1], False
    _check_entries(path.with_suffix(".json"), info)
    _filled(path, info)
    write_info(path, info)
    return read_info(path), True


def fill_network(network: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Loads saved weights into an existing network of the same class and arguments, in place.

    Args:
        network: instance of a registered class.
        path: path of the ``.pt`` file, with its JSON beside it.

    Returns:
        The same network.

    Raises:
        WeightsError: see `load_weights`; or the file holds weights of another network.
    """
    source, info = load_weights(path)
    if type(source) is not type(network) or info["arguments"] != json.loads(json.dumps(network.arguments)):
        raise WeightsError(
            f"{path} holds {_described(info)}, not {type(network).__name__}"
            f"({shown(network.arguments, MOST_REPEATED)}). Name weights of that network, or give their modality."
        )
    network.load_state_dict(source.state_dict(), strict=True)
    return network


def _filled(path: Path, info: dict[str, Any]) -> nn.Module:
    json_path = path.with_suffix(".json")
    try:
        if sha256_file(path) != info["sha256"]:
            raise WeightsError(
                f"{path} is not the file that its JSON describes (other SHA-256). Copy the pair of files anew."
            )
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        network = NETWORKS[info["network"]](**info["arguments"])
    except Exception as error:  # constructors raise many types of errors for invalid arguments
        raise WeightsError(
            f"{json_path} does not describe a {info['network']} ({_repeated(error)}). Use the release that wrote it."
        ) from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many types of errors for damaged files
        raise WeightsError(f"{path} is not a PyTorch file of tensors. Copy the pair of files anew.") from error
    try:
        network.load_state_dict(state, strict=True)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{path} does not fit {_described(info)}: {_repeated(error)}. Copy the pair of files anew."
        ) from error
    spoilt = _not_finite(network.state_dict())
    if spoilt:
        raise WeightsError(f"{path} holds values that are no numbers, in {spoilt}. Train the network anew.")
    return network.eval().requires_grad_(False)


def _parsed(path: Path) -> dict[str, Any]:
    """Parses the JSON beside a ``.pt`` file and checks that it has this format and names a registered network."""
    json_path = path.with_suffix(".json")
    for file in (path, json_path):
        if not os.path.lexists(file):
            raise WeightsError(
                f"{file} does not exist. Train it with this bundle's configs or name another models_dir."
            )
        if not file.is_file():  # reading a pipe could block forever
            raise WeightsError(f"{file} is not a file. Put the pair of files in its place.")
    try:
        info = json.loads(json_path.read_text(encoding="utf-8"), parse_constant=_no_number, parse_float=_finite_float)
        known = isinstance(info, dict) and info.get("format") == FORMAT and info.get("network") in list(NETWORKS)
        if known:
            _digest(info)
    except OSError as error:
        raise _unreadable(json_path, error) from error
    except RecursionError as error:
        raise WeightsError(f"{json_path} is nested too deeply to be read. Copy the pair of files anew.") from error
    except ValueError as error:
        raise WeightsError(
            f"{json_path} is not valid JSON ({_repeated(error)}). Copy the pair of files anew."
        ) from error
    if not known:
        raise WeightsError(
            f"{json_path} is not of format {FORMAT} with a network of {', '.join(sorted(NETWORKS))}. Use the release "
            f"that wrote it."
        )
    return dict(info)


def _no_number(token: str) -> float:
    raise ValueError(f"{token} is no number")


def _finite_float(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(shown(text))


def _plain(value: Any) -> Any:
    """Converts content to the types that JSON preserves; numbers that are not finite become None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def _digest(content: dict[str, Any]) -> str:
    return content_digest(content, 64)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


#: Check of each entry that is present, and the description of a valid value for messages.
ENTRIES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "arguments": (_is_dict, "a dictionary"),
    "channels": (lambda value: _is_count(value) and value in (1, 3), "1 or 3"),
    "cpu_seconds": (lambda value: _is_number(value) and value >= 0, "a number of at least 0"),
    "epochs": (_is_count, "a whole number of at least 0"),
    "images_seen": (_is_count, "a whole number of at least 0"),
    "licence": (_is_text, "a text"),
    "modality": (lambda value: name_problem(value) is None, "a name that can be part of a file name"),
    "n_identities": (_is_count, "a whole number of at least 0"),
    "n_images": (_is_count, "a whole number of at least 0"),
    "preprocessing": (_is_text, "a text"),
    "resolution": (lambda value: _is_count(value) and value > 0, "a whole number above 0"),
    "scores": (_is_dict, "a dictionary"),
    "scores.apart": (
        lambda value: isinstance(value, list) and all(_is_number(part) and part >= 0 for part in value),
        "a list of numbers of at least 0",
    ),
    "scores.threshold": (_is_number, "a number"),
    "seed": (_is_count, "a whole number of at least 0"),
    "seen": (lambda value: isinstance(value, list) and all(map(_is_text, value)), "a list of texts"),
    "sha256": (_is_hash, "a SHA-256"),
    "split_sha256": (_is_hash, "a SHA-256"),
    "training": (_is_dict, "a dictionary"),
    "training.generator_sha256": (_is_hash, "a SHA-256"),
    "training.teacher_sha256": (_is_hash, "a SHA-256"),
}
_ABSENT = object()


def _entry(info: dict[str, Any], name: str) -> Any:
    value: Any = info
    for key in name.split("."):
        value = value.get(key, _ABSENT) if isinstance(value, dict) else _ABSENT
    return value


def _check_entries(json_path: Path, info: dict[str, Any], required: Iterable[str] = ()) -> None:
    absent = [name for name in ("arguments", "sha256", *required) if _entry(info, name) in (_ABSENT, None)]
    problem = f"{', '.join(absent)} is missing" if absent else _entries_problem(info)
    if problem:
        raise WeightsError(
            f"{json_path} cannot be used: {problem}. Copy the pair of files anew, or train the network anew."
        )


def _entries_problem(info: dict[str, Any]) -> str | None:
    """Describes the first entry that has an invalid value or contradicts another one; returns None if there is none."""
    for name, (fits, words) in ENTRIES.items():
        value = _entry(info, name)
        if value is not _ABSENT and not fits(value):
            return f"{name} is {shown(value)}, not {words}"
    arguments = info["arguments"]
    is_identity = arguments.get("identity") is True  # the classes of an identity network are patients
    if "class_names" in info:
        problem = class_names_problem(info["class_names"], None if is_identity else arguments.get("num_classes"))
        if problem:
            return f"class_names: {problem}"
    # The `channels` of the projected discriminator are those of its features, not of images.
    same = {"resolution": "resolution", "channels": "image_channels" if "image_channels" in arguments else "channels"}
    if is_identity:
        same["n_identities"] = "num_classes"
    for name, argument in same.items():
        if name in info and argument in arguments and info[name] != arguments[argument]:
            return f"{name} is {info[name]}, that of the network {shown(arguments[argument])}"
    return None


def _not_finite(state: dict[str, torch.Tensor]) -> str | None:
    return next((key for key, value in state.items() if not bool(torch.isfinite(value).all())), None)


def _described(info: dict[str, Any]) -> str:
    return f"{info['network']}({shown(info['arguments'], MOST_REPEATED)})"


def _repeated(error: BaseException) -> str:
    """Returns an error's text in one line, truncated to `MOST_REPEATED` characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= MOST_REPEATED else f"{text[: MOST_REPEATED - 3]}..."


def _unreadable(path: Path, error: OSError) -> WeightsError:
    return WeightsError(
        f"{path} cannot be read ({error.strerror or 'input/output error'}). Copy the pair of files anew."
    )
