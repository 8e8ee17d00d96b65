"""Expands the compact model specs that ship with the profiles into ``ModelSpec``.

A compact spec names each shape once for all blocks, and per quantization the runs of types over these blocks; its
format is described in ``docs/profiles.md`` and written by ``scripts/make_specs.py``. All quantizations of a model share
their equal ``TensorInfo``. It must not know of profiles, nor of weights files.
"""

from collections.abc import Iterable, Mapping
from functools import cached_property
from math import prod
from typing import Any, Final, Literal

import msgspec

from launcher.domain import MetadataValue, ModelSpec, Noun, Provenance, TensorInfo, WeightsFormat
from launcher.tensor_types import TensorType, tensor_bytes

_MAX_BLOCKS: Final = 4096
"""Far above any model (405B has 126 blocks); keeps a hostile range from filling the memory."""

_MAX_TENSORS: Final = 100_000
"""Of one form, far above any model here (at most 1,138), to the same end."""


class SpecError(ValueError):
    """A compact spec contradicts itself or is no such document; the message says where."""


class TensorPattern(Noun, frozen=True):
    """Tensors of one shape: in ``name``, ``{i}`` stands for each of ``blocks`` (``0-3,7``); ``type`` if it is fixed."""

    name: str
    shape: tuple[int, ...]
    blocks: str | None = None
    type: str | None = None


class CompactQuantization(Noun, frozen=True):
    """One GGUF quantization: the type runs of every pattern without a fixed type."""

    provenance: Provenance
    types: Mapping[str, str]


class CompactLayout(Noun, frozen=True):
    """One safetensors form: tensors of its own, all of fixed types, with the configuration's own keys as metadata."""

    provenance: Provenance
    architecture: str
    metadata: Mapping[str, Any]
    tensors: tuple[TensorPattern, ...]


class CompactSpec(Noun, frozen=True):
    """A whole compact spec, as it stands in ``profiles/specs/NAME.json``; all but ``safetensors`` is of GGUF."""

    schema_version: Literal[1]
    name: str
    architecture: str
    sources: tuple[str, ...]
    metadata: Mapping[str, Any]
    tensors: tuple[TensorPattern, ...]
    quantizations: Mapping[str, CompactQuantization]
    safetensors: Mapping[str, CompactLayout] = {}


def parse_spec(content: bytes) -> CompactSpec:
    """Return the compact spec that a JSON text holds.

    Raises:
        SpecError: it is no JSON, or not of this form.
    """
    try:
        return msgspec.json.decode(content, type=CompactSpec)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SpecError(str(error)) from None


def count_parameters(spec: CompactSpec, key: tuple[WeightsFormat, str]) -> int | None:
    """Return the elements of all tensors of one form of the weights, without expanding it; ``None`` if it is unknown.

    Raises:
        SpecError: a range is wrong.
    """
    weights_format, name = key
    if weights_format is WeightsFormat.SAFETENSORS:
        layout = spec.safetensors.get(name)
        patterns = None if layout is None else layout.tensors
    else:
        patterns = spec.tensors if name in spec.quantizations else None
    if patterns is None:
        return None
    return sum((1 if p.blocks is None else len(_parse_ranges(p.blocks))) * prod(p.shape) for p in patterns)


def expand(
    spec: CompactSpec, wanted: Iterable[tuple[WeightsFormat, str]]
) -> dict[tuple[WeightsFormat, str], ModelSpec]:
    """Return the full specs of those wanted forms of the weights that the compact one knows.

    Raises:
        SpecError: a range, a type or a count of blocks is wrong.
    """
    metadata = _metadata(spec.metadata)
    shared = [_Expansion(pattern) for pattern in spec.tensors]
    expanded = {}
    for key in wanted:
        weights_format, name = key
        if weights_format is WeightsFormat.SAFETENSORS and (layout := spec.safetensors.get(name)):
            expanded[key] = ModelSpec(
                architecture=layout.architecture,
                format=weights_format,
                metadata=_metadata(layout.metadata),
                tensors=_tensors([_Expansion(pattern) for pattern in layout.tensors], {}),
                provenance=layout.provenance,
            )
        elif weights_format is WeightsFormat.GGUF and (quantization := spec.quantizations.get(name)):
            expanded[key] = ModelSpec(
                architecture=spec.architecture,
                format=weights_format,
                metadata=metadata,
                tensors=_tensors(shared, quantization.types),
                provenance=quantization.provenance,
            )
    return expanded


def _tensors(expansions: "Iterable[_Expansion]", types: Mapping[str, str]) -> tuple[TensorInfo, ...]:
    tensors: list[TensorInfo] = []
    for expansion in expansions:
        tensors += expansion.tensors(types)
        if len(tensors) > _MAX_TENSORS:
            msg = f"more than {_MAX_TENSORS} tensors"
            raise SpecError(msg)
    return tuple(tensors)


class _Expansion:
    """The tensors of one pattern; those of a type are made once, however many quantizations ask for them."""

    def __init__(self, pattern: TensorPattern) -> None:
        self._pattern = pattern
        self._by_type: dict[str, list[TensorInfo]] = {}
        self._by_runs: dict[str, list[TensorInfo]] = {}

    @cached_property
    def _names(self) -> list[str]:
        if self._pattern.blocks is None:
            return [self._pattern.name]
        before, mark, after = self._pattern.name.partition("{i}")
        if not mark:
            msg = f"{self._pattern.name} has blocks but no {{i}}"
            raise SpecError(msg)
        return [f"{before}{i}{after}" for i in _parse_ranges(self._pattern.blocks)]

    def tensors(self, types: Mapping[str, str]) -> list[TensorInfo]:
        """Return the tensors of the pattern with the types that a quantization gives them, in the order of blocks."""
        name = self._pattern.name
        runs = self._pattern.type or types.get(name)
        if runs is None:
            msg = f"{name} has no type"
            raise SpecError(msg)
        tensors = self._by_runs.get(runs)
        if tensors is None:
            tensors = self._by_runs[runs] = self._expand_runs(runs)
        return tensors

    def _expand_runs(self, runs: str) -> list[TensorInfo]:
        if " " not in runs and "*" not in runs:
            return self._of_type(runs)
        tensors: list[TensorInfo] = []
        for run in runs.split():
            kind, _, count = run.partition("*")
            n = _parse_count(count) if count else 1
            tensors += self._of_type(kind)[len(tensors) : len(tensors) + n]
        if len(tensors) != len(self._names) or sum(_run_length(run) for run in runs.split()) != len(tensors):
            msg = f"{self._pattern.name} has {len(self._names)} blocks, its types are for another number: {runs}"
            raise SpecError(msg)
        return tensors

    def _of_type(self, kind: str) -> list[TensorInfo]:
        if (made := self._by_type.get(kind)) is not None:
            return made
        try:
            tensor_type = TensorType(kind)
            tensor_bytes(tensor_type, self._pattern.shape)
        except ValueError as error:
            msg = f"{self._pattern.name}: {error}"
            raise SpecError(msg) from None
        if not all(0 < extent < 2**48 for extent in self._pattern.shape):
            msg = f"{self._pattern.name} has an absurd shape {self._pattern.shape}"
            raise SpecError(msg)
        shape = self._pattern.shape
        made = self._by_type[kind] = [TensorInfo(name=name, shape=shape, type=tensor_type) for name in self._names]
        return made


def _run_length(run: str) -> int:
    _, _, count = run.partition("*")
    return _parse_count(count) if count else 1


def _parse_count(digits: str) -> int:
    if not (digits.isascii() and digits.isdigit() and len(digits) <= len(str(_MAX_BLOCKS))):
        msg = f"`{digits[:20]}` is not a number of blocks"
        raise SpecError(msg)
    return int(digits)


def _parse_ranges(ranges: str) -> list[int]:
    numbers: list[int] = []
    for part in ranges.split(","):
        low, dash, high = part.partition("-")
        first = _parse_count(low)
        last = _parse_count(high) if dash else first
        if last < first or last >= _MAX_BLOCKS or (numbers and first <= numbers[-1]):
            msg = f"`{ranges[:40]}` are not ascending block numbers below {_MAX_BLOCKS}"
            raise SpecError(msg)
        numbers.extend(range(first, last + 1))
    return numbers


def _metadata(raw: Mapping[str, Any]) -> dict[str, MetadataValue]:
    metadata: dict[str, MetadataValue] = {}
    for key, value in raw.items():
        if isinstance(value, list):
            metadata[key] = tuple(value)
        elif isinstance(value, bool | int | float | str):
            metadata[key] = value
        else:
            msg = f"metadata {key} is neither a scalar nor an array"
            raise SpecError(msg)
    return metadata
