"""A profile's safetensors artifacts, with what can be said of each before any machine is looked at.

What is costly is read when it is first asked for, and kept: most plans need none of it. It must not know devices.
"""

from functools import cached_property
from typing import TYPE_CHECKING

from launcher.domain import Artifact, Device, ModelSpec, Profile, WeightsFormat
from launcher.planner.parameters import count_active, expert_share, find_number, is_expert
from launcher.planner.quality import kl_divergence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from launcher.planner.footprint.vllm import VllmChoice
    from launcher.planner.footprint.vllm_learnt import Learnt
    from launcher.planner.footprint.vllm_model import VllmModel

_NOT_LOADED = ("mtp.", "model.mtp.")
"""Draft layers, which vLLM leaves out unless told otherwise."""


class Form:
    """One safetensors artifact whose metadata is known.

    ``n_active`` are the parameters that a token passes through: of any form of the same model, for they all have as many.
    """

    def __init__(self, artifact: Artifact, spec: ModelSpec, n_active: float) -> None:
        """Take an artifact and its spec; nothing is computed yet."""
        self.artifact = artifact
        self.spec = spec
        self.n_active = n_active
        self.kl = kl_divergence(artifact.quantization, n_active)
        self.models: dict[int, VllmModel] = {}
        """What vLLM makes of it, by the size of an element of activations; filled by whoever needs it."""
        self.choices: dict[
            tuple[tuple[Sequence[Device], ...], int, int, int | None, str, Learnt], VllmChoice | str
        ] = {}
        """How vLLM would serve it: by the devices of each host, context, requests, tensor parallelism, the cache's type and what
        was learnt; filled likewise."""

    @cached_property
    def weights_bytes(self) -> int:
        """Bytes of the weights that are loaded: no GPUs that hold less can serve it."""
        return sum([n_bytes for _, n_bytes in self._loaded])

    @cached_property
    def read_bytes(self) -> float:
        """Bytes of weights that each generated token reads at least: of the experts its share, no embeddings."""
        share = expert_share(self.spec)
        read = [pair for pair in self._loaded if "embed_tokens." not in pair[0] and "wte." not in pair[0]]
        if share == 1.0:
            return sum([n_bytes for _, n_bytes in read])
        return sum([n_bytes * share if is_expert(name) else n_bytes for name, n_bytes in read])

    @cached_property
    def _loaded(self) -> list[tuple[str, int]]:
        """The name and the bytes of each tensor that is loaded."""
        # Tensors of one description share their shape: its identity is quicker to look up than its numbers.
        sizes: dict[tuple[int, int], int] = {}
        loaded = []
        for tensor in self.spec.tensors:
            key = id(tensor.type), id(tensor.shape)
            n_bytes = sizes.get(key)
            if n_bytes is None:
                n_bytes = sizes[key] = tensor.n_bytes
            loaded.append((tensor.name, n_bytes))
        return [pair for pair in loaded if not pair[0].startswith(_NOT_LOADED)]

    @cached_property
    def n_ctx_train(self) -> int:
        """Tokens that the model was trained for; 0 where the configuration does not say."""
        return find_number(self.spec.metadata, ("max_position_embeddings", "n_positions", "max_seq_len"))


def prepare_forms(profile: Profile) -> tuple[Form, ...]:
    """Return a profile's artifacts that vLLM may be able to load and whose metadata is known, as they stand there."""
    found = [
        (artifact, artifact.spec)
        for artifact in profile.artifacts
        if artifact.format is WeightsFormat.SAFETENSORS and artifact.spec is not None
    ]
    if not found:
        return ()
    n_active = count_active(min((spec for _, spec in found), key=lambda spec: len(spec.tensors)))
    return tuple(Form(artifact, spec, n_active) for artifact, spec in found)
