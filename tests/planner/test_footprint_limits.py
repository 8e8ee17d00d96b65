"""What llama-server refuses, and the odd settings and blocks that its rows would not show by themselves."""

from collections.abc import Mapping

import pytest
from msgspec.structs import replace

from launcher.domain import CacheType, MetadataValue, ModelSpec, TensorInfo, WeightsFormat
from launcher.planner.architecture import NoCache, RecurrentState, read_architecture
from launcher.planner.footprint.limits import can_flash, can_pack_heads, find_contradiction
from launcher.planner.footprint.llama_cpp import X86_REPACKED, Backend, LlamaCppConfig, estimate_footprint, place_layers
from launcher.planner.footprint.replay import Pool
from launcher.planner.footprint.weights import sum_weights
from launcher.tensor_types import TensorType

N_EMBD, N_VOCAB, N_LAYER = 512, 1024, 4
CONFIG = LlamaCppConfig(n_ctx=1024, n_gpu_layers=99)


_QUERIES_32: dict[str, MetadataValue] = {"attention.head_count": 32, "attention.head_count_kv": 1}


def _spec(
    architecture: str = "llama",
    *,
    keys: Mapping[str, MetadataValue] | None = None,
    extra: tuple[TensorInfo, ...] = (),
    n_vocab: int = N_VOCAB,
    table: TensorType = TensorType.F16,
) -> ModelSpec:
    """A transformer of four blocks with tied embeddings."""

    def tensor(name: str, *shape: int) -> TensorInfo:
        return TensorInfo(name=name, shape=shape, type=TensorType.F16)

    blocks = [
        tensor(f"blk.{idx}.{name}.weight", N_EMBD, N_EMBD)
        for idx in range(N_LAYER)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    ]
    embedding = TensorInfo(name="token_embd.weight", shape=(N_EMBD, n_vocab), type=table)
    numbers: dict[str, MetadataValue] = {
        "block_count": N_LAYER,
        "embedding_length": N_EMBD,
        "context_length": 4096,
        "feed_forward_length": N_EMBD,
        "attention.head_count": 8,
        **(keys or {}),
    }
    return ModelSpec(
        architecture=architecture,
        format=WeightsFormat.GGUF,
        metadata={f"{architecture}.{key}": value for key, value in numbers.items()},
        tensors=(embedding, *blocks, *extra),
    )


def _hold(spec: ModelSpec, config: LlamaCppConfig = CONFIG) -> tuple[int, int, int, int]:
    """Bytes of device weights, cache and compute, and of host weights."""
    architecture = read_architecture(spec)
    held = estimate_footprint(architecture, sum_weights(spec, architecture.n_layer), config, ("gpu0",))
    device = held.devices[0]
    return device.weights_bytes, device.kv_cache_bytes, device.compute_bytes, held.host.weights_bytes


@pytest.mark.parametrize(
    ("keys", "changes", "fact"),
    [
        ({}, {"n_parallel": 257, "n_batch": 512}, "257 slots are more than llama.cpp's 256"),
        ({}, {"n_parallel": 8, "n_batch": 4}, "a batch of 4 tokens cannot give each of 8 slots its token"),
        ({}, {"flash_attn": False, "cache_type_v": CacheType.Q4_0}, "a V cache of q4_0 needs flash attention"),
        (
            {"attention.key_length": 80},
            {"cache_type_k": CacheType.Q8_0},
            "a K cache of q8_0 packs 32 elements, and heads have 80",
        ),
        (
            {"attention.value_length": 80},
            {"cache_type_v": CacheType.Q5_1},
            "a V cache of q5_1 packs 32 elements, and heads have 80",
        ),
        (
            {"attention.key_length_mla": 192, "attention.value_length_mla": 128},
            {"cache_type_k": CacheType.Q8_0},
            "`llama` keeps one cache for both K and V, which cannot be q8_0 and f16",
        ),
    ],
)
def test_what_the_engine_refuses_is_said(keys: dict[str, MetadataValue], changes: dict[str, object], fact: str) -> None:
    """Each was seen to end llama-server of build 11434 at its start."""
    found = find_contradiction(read_architecture(_spec(keys=keys)), replace(CONFIG, **changes))
    assert found is not None
    assert found[0] == fact


def test_an_architecture_without_flash_attention_has_no_packed_v_cache() -> None:
    """The engine switches it off for Grok, whatever was asked for."""
    found = find_contradiction(read_architecture(_spec("grok")), replace(CONFIG, cache_type_v=CacheType.Q8_0))
    assert found is not None
    assert "`grok` has not" in found[0]


def test_latent_attention_by_an_indexer_has_one_cache_too() -> None:
    """Where every block has an indexer (DeepSeek 3.2) the engine still refuses two cache types."""
    keys: dict[str, MetadataValue] = {"attention.key_length_mla": 192, "attention.indexer.key_length": 128}
    architecture = read_architecture(_spec("deepseek32", keys=keys))
    found = find_contradiction(architecture, replace(CONFIG, cache_type_k=CacheType.Q8_0))
    assert found is not None
    assert "`deepseek32` keeps one cache for both K and V" in found[0]


@pytest.mark.parametrize("name", ["kimi-linear", "minimax-01"])
def test_slots_divide_the_step_where_the_engine_cuts_it_into_streams(name: str) -> None:
    """llama-server of build 11434 ends by an assertion with three slots and a step of 512, and starts with four."""
    architecture = read_architecture(_spec(name, keys={"full_attention_interval": 2}))
    found = find_contradiction(architecture, replace(CONFIG, n_parallel=3))
    assert found is not None
    assert found[0] == f"3 slots do not divide a step of 512 tokens, as `{name}` needs them to"
    for changes in ({"n_parallel": 4}, {"n_parallel": 3, "kv_unified": True}, {"n_parallel": 3, "n_ubatch": 96}):
        assert find_contradiction(architecture, replace(CONFIG, **changes)) is None


@pytest.mark.parametrize(("interval", "is_refused"), [(3, True), (4, False)])
def test_attention_in_the_last_block_alone_divides_no_step(interval: int, *, is_refused: bool) -> None:
    """Of four blocks the third attends, or the fourth: behind the last one too few rows are left to be cut."""
    architecture = read_architecture(_spec("minimax-01", keys={"full_attention_interval": interval}))
    assert [isinstance(layer, RecurrentState) for layer in architecture.layers].index(False) == interval - 1
    assert (find_contradiction(architecture, replace(CONFIG, n_parallel=3)) is not None) is is_refused


def test_ordinary_settings_contradict_nothing() -> None:
    """Packed caches of heads of 64, and as many slots as tokens in a batch."""
    architecture = read_architecture(_spec())
    config = replace(CONFIG, cache_type_k=CacheType.Q8_0, cache_type_v=CacheType.IQ4_NL, n_parallel=8, n_batch=8)
    assert find_contradiction(architecture, config) is None
    assert can_pack_heads(architecture, CacheType.Q4_1)


@pytest.mark.parametrize(
    ("keys", "has_kernel"),
    [
        ({}, True),
        ({"attention.key_length": 100, "attention.value_length": 100}, False),
        ({"attention.key_length": 128, "attention.value_length": 64}, False),
        ({"attention.key_length": 576, "attention.value_length": 512, "attention.head_count_kv": 1}, True),
        ({"attention.key_length": 192, "attention.value_length": 128, "attention.head_count_kv": 1}, True),
        ({"attention.key_length": 192, "attention.value_length": 128}, False),
        ({"attention.key_length": 320, "attention.value_length": 256, "attention.head_count_kv": 1}, False),
        ({"attention.key_length": 320, "attention.value_length": 256, **_QUERIES_32}, True),
        ({"attention.key_length": 512, "attention.value_length": 512, "attention.head_count_kv": 4}, True),
        *(
            ({"attention.key_length": size, "attention.value_length": size}, True)
            for size in (40, 64, 72, 80, 96, 112, 128, 256)
        ),
    ],
)
def test_flash_attention_is_for_heads_that_cuda_has_a_kernel_for(
    keys: dict[str, MetadataValue], *, has_kernel: bool
) -> None:
    """Elsewhere the engine would attend on the CPU when it is told to use it."""
    assert can_flash(read_architecture(_spec(keys=keys))) is has_kernel


def test_blocks_that_predict_ahead_are_dealt_out_but_not_held() -> None:
    """A last block for drafts takes a place among the layers, and neither weights nor cache nor compute."""
    extra = tuple(
        TensorInfo(name=f"blk.{N_LAYER}.{name}.weight", shape=(N_EMBD, N_EMBD), type=TensorType.F16)
        for name in ("attn_q", "nextn.eh_proj")
    )
    keys: dict[str, MetadataValue] = {"block_count": N_LAYER + 1, "nextn_predict_layers": 1}
    spec = _spec("glm4moe", keys=keys, extra=extra)
    architecture = read_architecture(spec)
    assert architecture.n_layer == N_LAYER + 1
    assert isinstance(architecture.layers[-1], NoCache)
    assert _hold(spec) == _hold(_spec("glm4moe"))
    # two of six layers are the output and the draft's block: all others are on the host
    assert _hold(spec, replace(CONFIG, n_gpu_layers=2))[:2] == (2 * N_EMBD * N_VOCAB, 0)
    assert place_layers(architecture.n_layer, 2, (1.0,)).blocks == (None,) * N_LAYER + (0,)


def test_more_blocks_that_predict_ahead_than_blocks_are_all_of_them() -> None:
    """A key that contradicts the depth is a figure, not a crash."""
    assert _hold(_spec("glm4moe", keys={"nextn_predict_layers": 9})) == (
        2 * N_EMBD * N_VOCAB,
        0,
        0,
        2 * N_EMBD * N_VOCAB,
    )


def test_what_the_engine_forgets_to_skip_is_held() -> None:
    """Step 3.5 loads the feed-forward part of such a block although it never computes it."""
    extra = (TensorInfo(name=f"blk.{N_LAYER}.ffn_up.weight", shape=(N_EMBD, N_EMBD), type=TensorType.F16),)
    keys: dict[str, MetadataValue] = {"block_count": N_LAYER + 1, "nextn_predict_layers": 1}
    assert _hold(_spec("step35", keys=keys, extra=extra))[0] == _hold(_spec("step35"))[0] + 2 * N_EMBD**2


def test_an_f32_cache_is_cast_for_flash_attention() -> None:
    """K and V of one layer are copied as f16 before each use: 2 bytes a value, 4096 cells more are 4 MiB each more."""
    wide = replace(CONFIG, cache_type_k=CacheType.F32, cache_type_v=CacheType.F32)
    growth = [
        _hold(_spec(), replace(config, n_ctx=n_ctx))[2] for config in (CONFIG, wide) for n_ctx in (8192, 8192 + 4096)
    ]
    assert (growth[3] - growth[2]) - (growth[1] - growth[0]) == 2 * (2 * N_EMBD * 4096)


@pytest.mark.parametrize(("n_vocab", "n_copies"), [(1024, 2), (1020, 1)])
def test_only_whole_groups_of_rows_are_repacked(n_vocab: int, n_copies: int) -> None:
    """Tied embeddings are held twice on a CPU that repacks them, which takes a multiple of eight rows."""
    spec = _spec(n_vocab=n_vocab, table=TensorType.Q4_0)
    config = replace(CONFIG, backend=Backend.CPU, shares=(), repacked=X86_REPACKED)
    architecture = read_architecture(spec)
    held = estimate_footprint(architecture, sum_weights(spec, N_LAYER), config, ())
    table_bytes = N_EMBD * n_vocab * 18 // 32
    assert held.host.weights_bytes == N_LAYER * 7 * 2 * N_EMBD**2 + n_copies * table_bytes


def test_keys_that_contradict_the_tensors_are_a_generous_figure() -> None:
    """Where no graph can be built, a device's figure is above what the same model takes with keys that agree."""
    keys: dict[str, MetadataValue] = {
        "ssm.conv_kernel": 4,
        "ssm.inner_size": 2 * N_EMBD,
        "ssm.state_size": 16,
        "ssm.time_step_rank": 8,
    }
    norm = TensorInfo(name="blk.0.ssm_norm.weight", shape=(128,), type=TensorType.F16)
    agreed, broken = (
        _hold(_spec("mamba2", keys={**keys, "ssm.group_count": n_group}, extra=(norm,)))[2] for n_group in (1, 0)
    )
    assert agreed < broken < 2 * agreed


def test_a_pool_is_endless_wherever_nothing_was_given_back() -> None:
    """Tensors without elements leave empty blocks beyond the free end; memory is not taken from them."""
    pool = Pool()
    first = pool.take(64)
    pool.take(64)
    empty = pool.take(0)
    pool.take(32)
    pool.give(first, 64)
    pool.give(64, 64)
    pool.give(128, 32)
    pool.give(empty + 32, 0)
    assert pool.take(1024) == 0
    assert pool.max_size == 1024
