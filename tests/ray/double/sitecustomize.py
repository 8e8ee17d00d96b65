"""Puts the double in the place of ``ray.serve.llm`` in every Python that a raylet starts with this folder on its path.

It must not know what the double does.
"""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the double for the one name, and leave every other to the next finder."""
        del path, target
        if fullname != "ray.serve.llm":
            return None
        return importlib.util.spec_from_file_location(fullname, Path(__file__).with_name("serve_llm.py"))


sys.meta_path.insert(0, _Finder())
