"""An application of somebody else's, which tells which process of it answers."""

import os

from ray import serve


class Foreign:
    """Answers with its process id, for as long as nobody restarts it."""

    async def __call__(self, _: object) -> str:
        """Answer any request."""
        return str(os.getpid())


# On the head, which no test kills; a little of a processor, so that every model has room.
app = serve.deployment(
    Foreign,
    ray_actor_options={"num_cpus": 0.1, "resources": {"node:__internal_head__": 0.001}},
    graceful_shutdown_wait_loop_s=0.1,
    graceful_shutdown_timeout_s=2,
).bind()
