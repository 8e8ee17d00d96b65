"""Finds out what a path holds, to hand it to the reader of that format.

It must not know any format beyond how to recognise it.
"""

from pathlib import Path

from launcher.domain import ModelSpec
from launcher.errors import MetadataError
from launcher.metadata.files import label
from launcher.metadata.gguf import read_gguf_file
from launcher.metadata.safetensors import read_folder


def read_spec(path: Path) -> ModelSpec:
    """Read what the headers at ``path`` say: a GGUF file, any file of a split GGUF model, or a Hugging Face folder.

    Raises:
        MetadataError: a file is truncated, absurd, hostile, pickled, or of another format.
        WeightsMissingError: nothing is there, or a part is missing.
    """
    if _is_folder(path):
        return read_folder(path)
    if path.suffix == ".safetensors":
        msg = f"`{label(path.name)}` alone does not describe a model"
        raise MetadataError(msg, offset=0, field="file", help="give the folder that holds it and its config.json")
    return read_gguf_file(path).spec


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that no file can have: the reader of files says so
        return False
