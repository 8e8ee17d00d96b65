"""What T5, an encoder with a decoder, cannot do."""

from msgspec.structs import replace

from benchmarks.footprint_error import unseen_lines, unseen_spec
from launcher.planner.architecture import read_architecture
from launcher.planner.footprint.limits import find_contradiction
from launcher.planner.footprint.llama_cpp import LlamaCppConfig

_SPEC = unseen_spec(unseen_lines()["t5-large"])


def test_slots_with_a_cache_each_are_refused() -> None:
    """The engine's assertion ``ggml_can_repeat`` would fail; one cache for all slots starts."""
    architecture = read_architecture(_SPEC)
    config = LlamaCppConfig(n_ctx=2048, n_gpu_layers=99, n_parallel=2)
    found = find_contradiction(architecture, config)
    assert found is not None
    assert "--kv-unified" in found[1]
    assert find_contradiction(architecture, replace(config, kv_unified=True)) is None
    assert find_contradiction(architecture, replace(config, n_parallel=1)) is None


def test_a_decoder_of_another_depth_is_an_estimate() -> None:
    """Caches follow the encoder's depth, and nothing else was compared."""
    deeper = replace(_SPEC, metadata={**_SPEC.metadata, "t5.decoder_block_count": 12})
    assert read_architecture(_SPEC).known
    assert not read_architecture(deeper).known
