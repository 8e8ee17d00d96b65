"""What DeepSeek V4 keeps of a context: rows that each stand for several tokens, in a stream for each slot."""

from benchmarks.footprint_error import unseen_lines, unseen_spec
from launcher.planner.architecture import CompressedAttention, read_architecture
from launcher.planner.footprint.llama_cpp import LlamaCppConfig, held_bytes
from launcher.planner.footprint.serving import checkpoint_bytes
from launcher.planner.footprint.weights import sum_weights

_SPEC = unseen_spec(unseen_lines()["dsv4-flash"])
_ARCHITECTURE = read_architecture(_SPEC)
_WEIGHTS = sum_weights(_SPEC, _ARCHITECTURE.n_layer)


def _config(n_ctx: int, *, n_parallel: int = 1, unified: bool = False) -> LlamaCppConfig:
    return LlamaCppConfig(n_ctx=n_ctx, n_gpu_layers=99, n_parallel=n_parallel, kv_unified=unified)


def _cache_bytes(config: LlamaCppConfig) -> int:
    return sum(held.kv_cache_bytes for held in held_bytes(_ARCHITECTURE, _WEIGHTS, config))


def test_a_shared_cache_is_a_whole_one_for_each_slot() -> None:
    """``--kv-unified`` saves nothing here: each slot has room for all tokens."""
    assert _cache_bytes(_config(8192, n_parallel=3, unified=True)) == _cache_bytes(_config(3 * 8192, n_parallel=3))


def test_more_context_costs_a_fraction_of_a_row_per_token() -> None:
    """Only rows grow: an f16 row for 4 tokens with its key for the indexer, or one for 128."""
    kept = [layer for layer in _ARCHITECTURE.layers if isinstance(layer, CompressedAttention)]
    per_token = sum(2 * (layer.n_embd_k + layer.n_index) / layer.ratio for layer in kept if layer.ratio)
    n_ctx, n_more = 32768, 32768
    assert _cache_bytes(_config(n_ctx + n_more)) - _cache_bytes(_config(n_ctx)) == n_more * per_token


def test_a_checkpoint_keeps_window_and_state_but_no_rows() -> None:
    """It is as large at any context, and one of two slots twice as large."""
    one = checkpoint_bytes(_ARCHITECTURE, _config(8192))
    assert 0 < one == checkpoint_bytes(_ARCHITECTURE, _config(65536)) < _cache_bytes(_config(8192))
    assert checkpoint_bytes(_ARCHITECTURE, _config(16384, n_parallel=2)) == 2 * one
