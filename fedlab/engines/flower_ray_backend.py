"""Backend of Flower's simulation for a Ray cluster that others use, too.

Flower asks for as many actors as the whole cluster has room for, hands messages to actors that do not run yet, and goes
on to hand them to actors whose machine has died. Here a run asks for one actor per client at most and begins when it
has got one; a message whose actor is lost goes to another one, with the same result: what a client computes depends on
the message alone.

**Source**: Flower 1.39, ``flwr/server/superlink/fleet/vce/backend/raybackend.py``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import ray
from flwr.app import Context, Message
from flwr.server.superlink.fleet.vce.backend.raybackend import RayBackend
from flwr.simulation.ray_transport.ray_actor import ClientAppActor, pool_size_from_resources

from fedlab.engines.ray_actors import ActorPool, another_takes_it, note
from fedlab.engines.ray_cluster import SHARED_CLUSTER
from fedlab.environment import search_paths


class SharedRayBackend(RayBackend):
    """Flower's backend with actors of ours; the first one has started when it is made.

    Parameters
    ----------
    config
        Flower's backend configuration.
    clients
        Number of clients, and so of actors at most.
    """

    def __init__(self, config: Any, clients: int) -> None:
        super().__init__(config)
        self.stopped, actor_type = threading.Event(), ClientAppActor
        self.slots = min(clients, pool_size_from_resources(self.client_resources))
        options: Any = actor_type.options(**self.client_resources)  # type: ignore[attr-defined]
        cpus, gpus = (float(self.client_resources.get(name, 0)) for name in ("num_cpus", "num_gpus"))
        self.actors = ActorPool(lambda: options.remote(), self.slots, cpus, gpus)
        self.actors.wait_for_one(os.environ[SHARED_CLUSTER])

    def init_ray(self, backend_config: Any) -> None:
        """Connect to the cluster; processes of this run find modules and data where this one does."""
        given = backend_config.get(self.init_args_key) or {}
        ray.init(**{"include_dashboard": False, **given, "runtime_env": {"env_vars": search_paths()}})

    @property
    def num_workers(self) -> int:
        """Number of threads that hand out messages; each waits for an actor."""
        return self.slots

    def is_worker_idle(self) -> bool:
        """Return True: a message waits for its actor."""
        return True

    def build(self, app_fn: Callable[[], Any]) -> None:
        """Remember how actors load the ClientApp; they have been asked for already."""
        self.app_fn = app_fn

    def process_message(self, message: Message, context: Context) -> tuple[Message, Context]:
        """Return a client's reply and its context, computed by whichever actor is free.

        Raises
        ------
        RayError
            When several actors were lost with this message, or the ServerApp has ended.
        """
        client = str(context.node_config["partition-id"])
        _, reply, updated = self.actors.run(
            lambda actor: actor.run.remote(self.app_fn, message, client, context),
            self.stopped,
            lambda lost: note(another_takes_it(client, lost)),
        )
        return reply, updated

    def terminate(self) -> None:
        """End the connection, and with it all actors of this run."""
        self.actors.close()
        ray.shutdown()
