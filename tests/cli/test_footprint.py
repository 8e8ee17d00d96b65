"""`launch footprint`: llama-server's memory from a header alone."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from launcher.cli import main

Launch = Callable[..., tuple[int, str, str]]
N_LAYER, N_EMBD, N_FF, N_HEAD, HEAD, N_VOCAB = 4, 256, 512, 4, 64, 1000


@pytest.fixture
def launch(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Launch:
    """Run the command line in this process; it gives exit code, stdout and stderr."""

    def run(*argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["launch", "footprint", *argv])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capsys.readouterr()

    return run


def _write(path: Path, architecture: str) -> Path:
    """Write a small transformer in f16 with norms in f32."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(2048)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(N_LAYER)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(N_HEAD)
    writer.add_head_count_kv(N_HEAD)
    shapes = {"token_embd": (N_VOCAB, N_EMBD), "output_norm": (N_EMBD,), "output": (N_VOCAB, N_EMBD)}
    for idx in range(N_LAYER):
        block = f"blk.{idx}."
        shapes |= {f"{block}attn_{part}": (N_EMBD, N_EMBD) for part in ("q", "k", "v", "output")}
        shapes |= {f"{block}attn_norm": (N_EMBD,), f"{block}ffn_norm": (N_EMBD,)}
        shapes |= {f"{block}ffn_{part}": (N_FF, N_EMBD) for part in ("gate", "up")}
        shapes[f"{block}ffn_down"] = (N_EMBD, N_FF)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.zeros(shape, np.float32 if len(shape) == 1 else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A llama of four blocks."""
    return _write(tmp_path / "small.gguf", "llama")


def _weights(n_blocks: int) -> int:
    return n_blocks * (2 * (4 * N_EMBD**2 + 3 * N_EMBD * N_FF) + 4 * 2 * N_EMBD)


_TABLE = 2 * N_EMBD * N_VOCAB
_CACHE_OF_BLOCK = 2 * 2 * N_HEAD * HEAD * 2048


def _json(launch: Launch, *argv: str) -> dict[str, Any]:
    code, out, err = launch(*argv, "--json")
    assert (code, err) == (0, "")
    result: dict[str, Any] = json.loads(out)
    return result


def test_json_has_the_promised_shape_and_exact_bytes(model: Path, launch: Launch) -> None:
    """Without options everything but the embeddings is on one device, at the context the model was trained for."""
    held = _json(launch, str(model))
    assert list(held) == ["devices", "host"]
    (device,) = held["devices"]
    assert list(device) == ["name", "weights_bytes", "kv_cache_bytes", "compute_bytes"]
    assert device["name"] == "gpu0"
    assert device["weights_bytes"] == _weights(4) + _TABLE + 4 * N_EMBD
    assert device["kv_cache_bytes"] == 4 * _CACHE_OF_BLOCK
    assert device["compute_bytes"] > 0
    host = held["host"]
    assert list(host) == [
        "weights_bytes",
        "kv_cache_bytes",
        "compute_bytes",
        "prompt_cache_bytes",
        "checkpoints_bytes",
        "resident_mmap_bytes",
    ]
    assert (host["weights_bytes"], host["kv_cache_bytes"]) == (_TABLE, 0)
    assert host["prompt_cache_bytes"] == 8 << 30
    assert host["checkpoints_bytes"] == 0
    assert host["resident_mmap_bytes"] == device["weights_bytes"]


def test_every_device_is_listed_in_order_also_when_it_holds_nothing(model: Path, launch: Launch) -> None:
    """Three devices, of which the second gets nothing and the last the output layer."""
    held = _json(launch, str(model), "--gpus", "3", "--tensor-split", "3,0,2", "--ctx-size", "2048")
    assert [use["name"] for use in held["devices"]] == ["gpu0", "gpu1", "gpu2"]
    assert [use["kv_cache_bytes"] for use in held["devices"]] == [3 * _CACHE_OF_BLOCK, 0, _CACHE_OF_BLOCK]
    assert [use["weights_bytes"] for use in held["devices"]] == [
        _weights(3),
        0,
        _weights(1) + _TABLE + 4 * N_EMBD,
    ]


def test_fewer_layers_leave_the_first_blocks_on_the_host(model: Path, launch: Launch) -> None:
    """Two GPU layers are the output and the last block; a number beyond all layers means all."""
    held = _json(launch, str(model), "--n-gpu-layers", "2")
    assert held["host"]["weights_bytes"] == _TABLE + _weights(3)
    assert held["devices"][0]["kv_cache_bytes"] == _CACHE_OF_BLOCK
    assert _json(launch, str(model), "--n-gpu-layers", "99") == _json(launch, str(model))


def test_the_cpu_has_no_devices(model: Path, launch: Launch) -> None:
    """All weights and the whole cache are in host memory."""
    held = _json(launch, str(model), "--backend", "cpu", "--ctx-size", "512", "--parallel", "2")
    assert held["devices"] == []
    assert held["host"]["kv_cache_bytes"] == _CACHE_OF_BLOCK
    assert held["host"]["weights_bytes"] == _weights(4) + 2 * _TABLE + 4 * N_EMBD


def test_host_weights_are_copied_to_a_gpu_but_not_to_a_worker(model: Path, launch: Launch) -> None:
    """With everything on the host a GPU still computes large batches, unless it is told not to."""
    on_gpu = _json(launch, str(model), "--n-gpu-layers", "0")["devices"][0]["compute_bytes"]
    assert on_gpu > 0
    assert _json(launch, str(model), "--n-gpu-layers", "0", "--no-op-offload")["devices"][0]["compute_bytes"] == 0
    assert _json(launch, str(model), "--n-gpu-layers", "0", "--backend", "rpc")["devices"][0]["compute_bytes"] == 0


def test_cache_types_parallel_and_attention_change_what_they_should(model: Path, launch: Launch) -> None:
    """q8_0 takes 34/64 of f16; scores without flash attention take a matrix of heads times cells."""
    plain = _json(launch, str(model))["devices"][0]
    small = _json(launch, str(model), "--cache-type-k", "q8_0", "--cache-type-v", "q8_0")["devices"][0]
    assert small["kv_cache_bytes"] * 64 == plain["kv_cache_bytes"] * 34
    slow = _json(launch, str(model), "--flash-attn", "off")["devices"][0]
    assert slow["compute_bytes"] - plain["compute_bytes"] > N_HEAD * 2048 * 512 * 4 - plain["compute_bytes"]
    three = _json(launch, str(model), "--parallel", "3", "--ctx-size", "1000")["devices"][0]
    assert three["kv_cache_bytes"] == 4 * _CACHE_OF_BLOCK * 3 * 512 // 2048
    assert (
        _json(launch, str(model), "--parallel", "3", "--ctx-size", "1000", "--kv-unified")["devices"][0][
            "kv_cache_bytes"
        ]
        == 4 * _CACHE_OF_BLOCK // 2
    )


def test_the_text_is_a_table_in_mib(model: Path, launch: Launch) -> None:
    """One line per memory, then what serving may add."""
    code, out, err = launch(str(model), "--ctx-size", "2048")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["MiB", "weights", "kv", "cache", "compute", "total"]
    assert lines[1].split()[:3] == ["gpu0", "5.5", "8.0"]
    assert lines[2].split()[:3] == ["host", "0.5", "0.0"]
    assert "prompt cache up to 8192.0 MiB" in out


@pytest.mark.parametrize(
    ("argv", "fact"),
    [
        (("--backend", "tpu"), "--backend does not know `tpu`"),
        (("--backend", "cpu", "--gpus", "1"), "--backend cpu has no devices, not 1"),
        (("--gpus", "2", "--tensor-split", "1,2,3"), "does not share out 2 devices"),
        (("--gpus", "2", "--tensor-split", "1,-2"), "does not share out 2 devices"),
        (("--gpus", "16"), "16 devices are more than llama.cpp's 15"),
        (("--parallel", "300"), "300 slots are more than llama.cpp's 256"),
        (("--parallel", "4", "--batch-size", "2"), "a batch of 2 tokens cannot give each of 4 slots its token"),
        (("--tensor-split", "nan"), "does not share out 1 devices"),
        (("--tensor-split", "x"), "does not share out 1 devices"),
        (("--cache-type-k", "q9"), "--cache-type-k does not know `q9`"),
        (("--flash-attn", "off", "--cache-type-v", "q8_0"), "a V cache of q8_0 needs flash attention"),
    ],
)
def test_what_has_no_meaning_is_a_usage_error(argv: tuple[str, ...], fact: str, model: Path, launch: Launch) -> None:
    """Exit code 2, the fact on stderr, nothing on stdout."""
    code, out, err = launch(str(model), *argv)
    assert (code, out) == (2, "")
    assert fact in err
    assert "help:" in err


def test_shares_are_read_as_llama_server_reads_them(model: Path, launch: Launch) -> None:
    """Devices left out get nothing, a slash separates too, only zeros mean equal shares."""

    def layout(*argv: str) -> list[int]:
        return [use["weights_bytes"] for use in _json(launch, str(model), "--gpus", "2", *argv)["devices"]]

    assert layout("--tensor-split", "1") == [_weights(4) + _TABLE + 4 * N_EMBD, 0]
    assert layout("--tensor-split", "4/1") == layout("--tensor-split", "4,1") != layout()
    assert layout("--tensor-split", "0,0") == layout()


def test_zero_means_what_it_means_to_llama_server(model: Path, launch: Launch) -> None:
    """The trained context, and a step as long as a batch."""
    assert _json(launch, str(model), "--ctx-size", "0") == _json(launch, str(model), "--ctx-size", "2048")
    whole = _json(launch, str(model), "--batch-size", "1024", "--ubatch-size", "0")
    assert whole == _json(launch, str(model), "--batch-size", "1024", "--ubatch-size", "1024")


def test_an_unknown_architecture_is_a_marked_figure(tmp_path: Path, launch: Launch) -> None:
    """The tensors tell enough for a figure; the doubt stands on stderr."""
    path = _write(tmp_path / "odd.gguf", "nobody-knows")
    code, out, err = launch(str(path), "--json")
    assert code == 0
    assert json.loads(out)["devices"][0]["weights_bytes"] == _weights(4) + _TABLE + 4 * N_EMBD
    assert err == "note: the architecture is not fully understood: figures err high\n"
