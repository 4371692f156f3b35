"""Well-known models by name, and any model of a local Hugging Face ``config.json``, built on the meta device: nothing
is downloaded and nothing has values, so a model of any size takes next to no memory."""
from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .preset_table import PRESETS
from .report_target import ReportTarget, TargetError

Size: TypeAlias = int | torch.SymInt

PHASES = ("prefill", "decode", "train")
DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32})


@dataclass(frozen=True)
class Scenario:
    """How a model is run: ``batch`` sequences or images, ``context`` tokens (None for a default that the model takes),
    ``phase`` one of `PHASES` (None for decoding where the model decodes, else the forward pass), ``dtype`` a key of
    `DTYPES`."""

    batch: int = 1
    context: int | None = None
    phase: str | None = None
    dtype: str = "bf16"


def is_model(target: str) -> bool:
    """Whether a target is a preset or a configuration, not a function."""
    return target in PRESETS or target.endswith(".json") or Path(target, "config.json").is_file()


def read_fields(target: str) -> dict[str, Any]:
    """The fields of a preset, of a ``config.json``, or of the one in a folder. Raises TargetError that names the file
    and what is wrong with it."""
    if target in PRESETS:
        return dict(PRESETS[target])
    path = Path(target).expanduser()
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise TargetError(f"there is no preset or file {target!r}; the presets are {', '.join(PRESETS)}")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise TargetError(f"{str(path)!r} can't be read as JSON: {error}") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("model_type"), str):
        raise TargetError(f"{str(path)!r} has no model_type; it must be a config.json of a Hugging Face model")
    return fields


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise TargetError("models by name or config.json need the package transformers; "
                          "install it with pip install 'rooffuse[demo]'") from None
    return transformers


def config_of(target: str, fields: Mapping[str, Any]) -> Any:
    """The configuration object of transformers. Raises TargetError for fields that it doesn't take."""
    transformers = _transformers()
    # "auto_map" would have classes fetched that aren't in transformers.
    rest = {k: v for k, v in fields.items() if k not in ("model_type", "auto_map")}
    try:
        return transformers.AutoConfig.for_model(fields["model_type"], **rest)
    except Exception as error:  # each configuration class checks its fields in its own way
        raise TargetError(f"{target}: {type(error).__name__}: {' '.join(str(error).split())[:300]}") from error


def model_kind(config: Any) -> str:
    """ "image" for a classifier of images, "encoder" for a model of masked language, "decoder" for one that generates
    text. Raises TargetError for another."""
    from transformers.models.auto import modeling_auto as auto

    named = (config.architectures or [""])[0]
    tables: dict[str, Any] = {"image": auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
                              "encoder": auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
                              "decoder": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    for kind, table in tables.items():
        if named and named == table.get(config.model_type):
            return kind
    for kind, table in tables.items():
        if config.model_type in table:
            return kind
    raise TargetError(f"a model of type {config.model_type!r} is no causal language model, masked language model or "
                      "image classifier, which are what can be built; write a file.py:function for it")


def model_of(target: str, config: Any, kind: str, scenario: Scenario, train: bool) -> torch.nn.Module:
    """The model on the meta device. Raises TargetError for sizes that don't fit together."""
    try:
        return _model(config, kind, scenario, train)
    except Exception as error:  # such as heads that don't divide the width
        raise TargetError(f"{target} can't be built: {type(error).__name__}: "
                          f"{' '.join(str(error).split())[:300]}") from error


def _model(config: Any, kind: str, scenario: Scenario, train: bool) -> torch.nn.Module:
    transformers = _transformers()
    classes = {"image": transformers.AutoModelForImageClassification, "encoder": transformers.AutoModelForMaskedLM,
               "decoder": transformers.AutoModelForCausalLM}
    with torch.device("meta"):
        model = classes[kind].from_config(config, dtype=DTYPES[scenario.dtype])
    if kind == "decoder":
        model.loss_type = "ForCausalLM"  # not every class says so, and the guess that replaces it breaks the graph
    return model.train(train).requires_grad_(train)


def _context(target: str, config: Any, scenario: Scenario) -> int:
    most = getattr(config, "max_position_embeddings", None) or 1 << 62
    if scenario.context is None:
        return min(1024, most)
    if scenario.context > most:
        raise TargetError(f"{target} takes contexts of up to {most} tokens, not {scenario.context}")
    return scenario.context


def _ids(device: torch.device, *shape: Size) -> Tensor:
    return torch.empty(shape, dtype=torch.int64, device=device)


def _decode(model: Any, config: Any, batch: Size, context: Size, dtype: torch.dtype, device: torch.device
            ) -> ReportTarget:
    from transformers.cache_utils import StaticCache

    cache = StaticCache(config, max_cache_len=context)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cache.early_initialization(batch, heads, width, dtype, device)

    def decode(ids: Tensor, positions: Tensor) -> Tensor:
        return model(ids, past_key_values=cache, position_ids=positions).logits

    return ReportTarget(decode, (_ids(device, batch, 1), _ids(device, batch, 1)), {})


def _prefill(model: Any, ids: Tensor) -> ReportTarget:
    def prefill(ids: Tensor) -> tuple[Tensor, ...]:
        result = model(ids, use_cache=True, logits_to_keep=1)
        kept = [t for layer in result.past_key_values.layers for t in (layer.keys, layer.values)]
        return result.logits, *kept

    return ReportTarget(prefill, (ids,), {})


def _train(model: Any, kind: str, inputs: Tensor) -> ReportTarget:
    labels = _ids(inputs.device, inputs.shape[0]) if kind == "image" else torch.empty_like(inputs)

    def step(inputs: Tensor, labels: Tensor) -> Tensor:
        options: dict[str, bool] = {"use_cache": False} if kind == "decoder" else {}
        return model(inputs, labels=labels, **options).loss

    return ReportTarget(step, (inputs, labels), {})


@dataclass(frozen=True)
class LoadedModel:
    """A model on the meta device and how it is to be run, checked: ``kind`` as of `model_kind`, ``phase`` one of
    `PHASES`, ``context`` in tokens, None for images."""

    model: torch.nn.Module
    config: Any
    kind: str
    phase: str
    dtype: torch.dtype
    batch: int
    context: int | None

    def run(self, model: Any, batch: Size, context: Size | None, device: torch.device) -> ReportTarget:
        """What to trace, for ``model`` or a copy of it on ``device``. The sizes may be symbols, under a fake mode."""
        if context is None:
            size, channels = self.config.image_size, self.config.num_channels
            height, width = size if isinstance(size, list | tuple) else (size, size)
            inputs = torch.empty((batch, channels, height, width), dtype=self.dtype, device=device)
        elif self.phase == "decode":
            return _decode(model, self.config, batch, context, self.dtype, device)
        else:
            inputs = _ids(device, batch, context)
        if self.phase == "train":
            return _train(model, self.kind, inputs)
        if self.kind == "decoder":
            return _prefill(model, inputs)
        forward: Callable[..., Any] = lambda inputs: model(inputs).logits  # noqa: E731
        return ReportTarget(forward, (inputs,), {})

    def on_meta(self) -> ReportTarget:
        """What to trace, as it was asked for."""
        return self.run(self.model, self.batch, self.context, torch.device("meta"))


def prepared_model(target: str, scenario: Scenario) -> LoadedModel:
    """A preset or ``config.json`` as a model, and how it is to be run.

    "decode" is one token more with a cache of ``context`` tokens that is updated in place, "prefill" a whole prompt
    with the keys and values it leaves and the logits of its last token, or the forward pass of a model that doesn't
    decode, "train" the loss and the gradients, without an optimiser's step.

    Raises TargetError for a configuration that can't be built, a context that is too long, or a phase that the model
    hasn't got.
    """
    config = config_of(target, read_fields(target))
    kind = model_kind(config)
    phase = scenario.phase or ("decode" if kind == "decoder" else "prefill")
    if phase == "decode" and kind != "decoder":
        raise TargetError(f"{target} doesn't decode, it is an {kind} model; its phases are prefill and train")
    if kind == "image" and scenario.context is not None:
        raise TargetError(f"{target} takes images, which have no context; leave --context out")
    context = None if kind == "image" else _context(target, config, scenario)
    model = model_of(target, config, kind, scenario, phase == "train")
    return LoadedModel(model, config, kind, phase, DTYPES[scenario.dtype], scenario.batch, context)


def load_model(target: str, scenario: Scenario) -> ReportTarget:
    """What to trace for a preset or ``config.json``; see `prepared_model`."""
    return prepared_model(target, scenario).on_meta()
