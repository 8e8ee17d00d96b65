"""The recorded tasks, read by SkyPilot: its schemas, and the task that it makes of them.

SkyPilot pins much that this project has otherwise, so it lives in an environment of its own: ``make test-skypilot``.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Final

import pytest
import yaml

from launcher.export.images import SKYPILOT_GPUS

pytestmark = pytest.mark.skypilot

_FOLDER: Final = Path(__file__).parent / "goldens"
_READ: Final = """\
import json, sys
import jsonschema, yaml
from sky import task
from sky.utils import schemas
answers = {}
for path in sys.argv[1:]:
    config = yaml.safe_load(open(path))
    jsonschema.validate(config, schemas.get_task_schema())
    jsonschema.validate(config["resources"], schemas.get_resources_schema())
    missing = [(name, "k") for name, value in config["secrets"].items() if value is None]
    made = task.Task.from_yaml_config(config, secrets_overrides=missing)
    (resources,) = made.resources
    answers[path] = {"num_nodes": made.num_nodes, "accelerators": resources.accelerators, "image": resources.image_id}
try:
    jsonschema.validate({**config, "bogus": 1}, schemas.get_task_schema())
except jsonschema.ValidationError:
    print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def python() -> str:
    """Return the Python of an environment that has SkyPilot."""
    path = os.environ.get("LAUNCHER_SKYPILOT")
    if path is None:
        pytest.fail("needs SkyPilot: make test-skypilot")
    return path


def test_skypilot_reads_the_tasks_as_they_were_meant(python: str, tmp_path: Path) -> None:
    """As many machines, with the accelerators that the plan takes."""
    paths = sorted(str(path) for path in _FOLDER.glob("*.sky.yaml"))
    env = {**os.environ, "HOME": str(tmp_path), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    env.pop("PYTHONPATH", None)
    result = subprocess.run(
        [python, "-c", _READ, *paths], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    read = json.loads(result.stdout.splitlines()[-1])
    assert list(read) == paths
    for path in paths:
        task = yaml.safe_load(Path(path).read_text())
        assert read[path]["num_nodes"] == task.get("num_nodes", 1)
        assert read[path]["accelerators"] == task["resources"]["accelerators"]
        assert set(task["resources"]["accelerators"]) <= set(SKYPILOT_GPUS.values())
        assert bool(read[path]["image"]) == ("image_id" in task["resources"])
