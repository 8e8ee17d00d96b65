"""Coverage-guided fuzzing of the GGUF reader, by hand: not collected by pytest.

Usage: pip install atheris, then python tests/metadata/fuzz_gguf.py [CORPUS_FOLDER] [-max_total_time=60] [-max_len=4096]
"""

import io
import struct
import sys

import atheris  # type: ignore[import-untyped]  # opt-in, and without types

with atheris.instrument_imports(include=["launcher"]):
    from launcher.errors import MetadataError
    from launcher.metadata.gguf import read_gguf


class BoundedStream(io.BytesIO):
    """A stream that ends the run when more is asked of it than remains."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read, if it is no more than remains."""
        if size is None or not 0 <= size <= len(self.getbuffer()) - self.tell():
            msg = f"asked for {size} bytes at {self.tell()}"
            raise AssertionError(msg)
        return super().read(size)


def read_one(data: bytes) -> None:
    """Read one input; anything but a header or a named fault is a finding."""
    # Magic and version are given: guessing them would take most of the time.
    data = b"GGUF" + struct.pack("<I", 3) + data
    try:
        header = read_gguf(BoundedStream(data), len(data))
    except MetadataError:
        return
    if header.data_offset + sum(tensor.n_bytes for tensor in header.tensors) > len(data) and header.tensors:
        msg = "tensors lie outside of the file"
        raise AssertionError(msg)


if __name__ == "__main__":
    atheris.Setup(sys.argv, read_one)
    atheris.Fuzz()
