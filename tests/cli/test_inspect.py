"""`launch inspect`: a header in, text or JSON on stdout, a named fault on stderr."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from launcher.cli import main

Launch = Callable[..., tuple[int, str, str]]


@pytest.fixture
def launch(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Launch:
    """Run the command line in this process; it gives exit code, stdout and stderr."""

    def run(*argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["launch", *argv])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A mixture of experts with heads that differ by layer, an odd name, and two element types."""
    path = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Small\x1b[31m")
    writer.add_context_length(4096)
    writer.add_block_count(2)
    writer.add_head_count(8)
    writer.add_head_count_kv([2, 4])
    writer.add_expert_count(16)
    writer.add_expert_used_count(2)
    writer.add_token_list(["<s>", "a", "b"])
    writer.add_tensor("token_embd.weight", np.zeros((3, 144), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q4_K)
    writer.add_tensor("output_norm.weight", np.zeros(256, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_text_says_what_was_read(model: Path, launch: Launch) -> None:
    """All figures of a header stand on stdout, nothing else does, and no name from the file steers the terminal."""
    code, out, err = launch("inspect", str(model), "--tensors")
    assert (code, err) == (0, "")
    assert out == (
        "name             Small\\x1b[31m\n"
        "architecture     llama\n"
        "format           gguf\n"
        "parameters       1.0 K (1024)\n"
        "weights          1.4 KiB (1456 bytes)\n"
        "bits per weight  11.38\n"
        "context          4096 tokens\n"
        "layers           2\n"
        "heads            8\n"
        "kv heads         2 to 4, by layer\n"
        "experts          16\n"
        "experts used     2 per token\n"
        "vocabulary       3 tokens\n"
        "\n"
        "type  tensors    bytes   share\n"
        "F32         1  1.0 KiB  70.3 %\n"
        "Q4_K        1    432 B  29.7 %\n"
        "\n"
        "tensor                shape  type    bytes\n"
        "token_embd.weight   256 x 3  Q4_K    432 B\n"
        "output_norm.weight      256   F32  1.0 KiB\n"
    )


def test_the_json_has_a_version_and_everything(model: Path, launch: Launch) -> None:
    """The schema is fixed: its version, the sums, the hyperparameters, all metadata and all tensors."""
    code, out, err = launch("inspect", str(model), "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "schema_version": 2,
        "architecture": "llama",
        "format": "gguf",
        "provenance": "read",
        "n_elements": 1024,
        "weights_bytes": 1456,
        "bits_per_weight": 11.375,
        "hyperparameters": {
            "n_ctx_train": 4096,
            "n_layer": 2,
            "n_head": 8,
            "n_head_kv": [2, 4],
            "n_expert": 16,
            "n_expert_used": 2,
            "n_vocab": 3,
        },
        "types": [
            {"type": "F32", "n_tensors": 1, "n_bytes": 1024},
            {"type": "Q4_K", "n_tensors": 1, "n_bytes": 432},
        ],
        "metadata": {
            "general.architecture": "llama",
            "general.name": "Small\x1b[31m",
            "llama.context_length": 4096,
            "llama.block_count": 2,
            "llama.attention.head_count": 8,
            "llama.attention.head_count_kv": [2, 4],
            "llama.expert_count": 16,
            "llama.expert_used_count": 2,
            "tokenizer.ggml.tokens.length": 3,
        },
        "tensors": [
            {"name": "token_embd.weight", "shape": [256, 3], "type": "Q4_K", "n_bytes": 432},
            {"name": "output_norm.weight", "shape": [256], "type": "F32", "n_bytes": 1024},
        ],
    }


def test_the_real_model_is_shown(real_model: Path, launch: Launch) -> None:
    """The figures of Gemma 3 270M are those its model card gives."""
    code, out, _err = launch("inspect", str(real_model), "--json")
    document = json.loads(out)
    assert code == 0
    assert document["architecture"] == "gemma3"
    assert document["n_elements"] == 268_098_176
    assert document["hyperparameters"] == {
        "n_ctx_train": 32768,
        "n_layer": 18,
        "n_embd": 640,
        "n_head": 4,
        "n_head_kv": 1,
        "n_swa": 512,
        "n_vocab": 262_144,
    }


def test_a_folder_is_shown(tmp_path: Path, launch: Launch) -> None:
    """A quantized Hugging Face folder tells its method, and calls packed elements elements, not parameters."""
    header = json.dumps({"w.qweight": {"dtype": "I32", "shape": [4, 8], "data_offsets": [0, 128]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(128))
    config = {"model_type": "llama", "hidden_size": 8, "quantization_config": {"quant_method": "awq", "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    code, out, err = launch("inspect", str(tmp_path))
    assert (code, err) == (0, "")
    assert out == (
        "architecture     llama\n"
        "format           safetensors\n"
        "quantization     awq\n"
        "stored elements  32 (32)\n"
        "weights          128 B (128 bytes)\n"
        "embedding        8\n"
        "\n"
        "type  tensors  bytes    share\n"
        "I32         1  128 B  100.0 %\n"
    )


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("gone.gguf", None, ("weights-missing", "check the path")),
        ("cut.gguf", b"GGUF\x03\x00", ("bad-weights-file", "download the file again")),
        ("model.pt", b"\x80\x04K\x01.", ("bad-weights-file", "use a safetensors or GGUF release")),
        ("model.safetensors", b"", ("bad-weights-file", "give the folder")),
    ],
)
def test_a_fault_is_text_and_json(
    name: str,
    content: bytes | None,
    said: tuple[str, str],
    tmp_path: Path,
    launch: Launch,
) -> None:
    """A file that is missing, cut, pickled or half a model ends with 1, one named fault and what to do, in both forms."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    exit_code, out, err = launch("inspect", str(tmp_path / name), "--json")
    assert exit_code == 1
    assert err.startswith(f"error[{said[0]}]: ")
    assert f"help: {said[1]}" in err
    fault = json.loads(out)["error"]
    assert (fault["code"], fault["help"] in err) == (said[0], True)
    assert launch("inspect", str(tmp_path / name))[1] == ""
