"""The one file that knows the library transformers, which is loaded when a backbone is built."""

from __future__ import annotations

import difflib
import json
import warnings
from collections.abc import Iterable
from typing import Any

from torch import nn

from model.backbones.configs import NO_SETTINGS, AutoBackboneConfig
from model.checks import require

INSTALL = "pip install -c constraints.txt -e '.[backbones]'"
CONFIG = "config.json"
STEM = "stem"  # of the library's names of stages: what lies before the first


def library() -> Any:
    """The library; a `ValueError` with one line where it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise ValueError(f"this backbone needs the library transformers ({error}); {INSTALL}") from error
    return transformers


def auto_settings(config: AutoBackboneConfig) -> Any:
    """The library's own settings of a model, with all its stages as outputs.

    Raises:
        ValueError: there is no such model, or it has no such settings; one line.
    """
    transformers, kinds = library(), _backbones()
    fetched = _fetched(config.model) if "/" in config.model else None
    kind = config.model if fetched is None else fetched.model_type
    known = ", ".join(kinds)
    require(kind in kinds, f"model: {kind!r} is no backbone of transformers{_near(kind, kinds) or f'; known: {known}'}")
    try:
        base = (fetched or transformers.CONFIG_MAPPING[kind]()).to_dict()
    except Exception as error:  # noqa: BLE001 - some need another library
        raise ValueError(f"model: transformers cannot build {kind} ({_line(error)})") from error
    for name in config.settings:
        require(name in base, f"settings: {kind} has no {name!r}{_near(name, base)}")
    given = {name: value for name, value in base.items() if fetched is not None and name not in NO_SETTINGS}
    try:
        found = transformers.AutoConfig.for_model(kind, **(given | json.loads(json.dumps(config.settings))))
    except Exception as error:  # noqa: BLE001 - the library checks in many ways
        raise ValueError(f"settings: {kind} refuses them ({_line(error)})") from error
    require(hasattr(found, "stage_names"), f"model: {kind} does not say which stages it has; choose another")
    for name, value in list(vars(found).items()):
        if isinstance(value, tuple):  # some of its models add lists to them
            setattr(found, name, list(value))
    found.out_features = [name for name in found.stage_names if name != STEM]
    return found


def auto_model(settings: Any) -> nn.Module:
    """The library's backbone of these settings, with random parameters; a `ValueError` where it cannot be built."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of layers without numbers: what is wrong is told in one line
            model: nn.Module = library().AutoBackbone.from_config(settings)
    except KeyError as error:  # of a table of activations or the like
        raise ValueError(
            f"settings: transformers cannot build {settings.model_type}: they hold {error}, which it does not know"
        ) from error
    except Exception as error:  # noqa: BLE001 - anything may be wrong with settings, or a library be missing
        raise ValueError(f"model: transformers cannot build {settings.model_type} ({_line(error)})") from error
    return model


def _fetched(name: str) -> Any:
    """Settings from the Hugging Face Hub, or from the copy that the library keeps of them."""
    try:
        return library().AutoConfig.from_pretrained(name, local_files_only=_is_kept(name))
    except Exception as error:  # noqa: BLE001 - of the network, of the hub, of the file
        raise ValueError(
            f"model: {name} is no folder with a config.json, and cannot be fetched from the Hugging Face Hub "
            f"({_line(error)})"
        ) from error


def _is_kept(name: str) -> bool:
    """Whether a copy of these settings is here; otherwise the Hub is asked once, since the library asks much longer."""
    has_file = library().utils.has_file
    if has_file(name, CONFIG, local_files_only=True):
        return True
    if not has_file(name, CONFIG):
        raise OSError(f"there is no answer, or no {CONFIG}")
    return False


def _backbones() -> list[str]:
    """Names of the library's models that can be backbones."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES

    return sorted(MODEL_FOR_BACKBONE_MAPPING_NAMES)


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _line(error: BaseException) -> str:
    """The first line of a message that may have many."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200].rstrip(".:") if lines else type(error).__name__
