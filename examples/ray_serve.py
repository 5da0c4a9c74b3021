"""N copies of the server behind Ray Serve: `python examples/ray_serve.py MODEL --replicas 2`.

Needs `pip install 'edgetok[ray]'`. Requests with one `x-session-id` header go to one replica, which
still holds what it read of the conversation; others are spread. With RAY_ADDRESS set it joins that
cluster, whose machines need the artefact at the same path.
"""

from __future__ import annotations

import argparse
import contextlib
import threading
from pathlib import Path

import psutil
import ray
from ray import serve
from ray.serve.config import HTTPOptions, RequestRouterConfig

from edgetok.environment import read_settings
from edgetok.library.resolve import model_folder
from edgetok.serve.options import ServeOptions
from edgetok.serve.server import application_of

STICKY = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each replica")
    parser.add_argument("--memory", help="of each replica, e.g. 2GB")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    given = parser.parse_args()
    memory = given.memory or psutil.virtual_memory().available // (2 * given.replicas)
    options = ServeOptions(host=given.host, memory=memory, key=read_settings().api_key)
    places = [((folder := Path(model_folder(given.model)).resolve()).name, folder)]
    replica = serve.ingress(lambda: application_of(places, options, threads=given.threads))()
    deployed = serve.deployment(
        replica,
        name="edgetok",
        num_replicas=given.replicas,
        max_ongoing_requests=options.parallel + options.queue,
        ray_actor_options={"num_cpus": given.threads},
        request_router_config=RequestRouterConfig(request_router_class=STICKY),
    )
    ray.init(include_dashboard=False)
    serve.start(http_options=HTTPOptions(host=given.host, port=given.port))
    serve.run(deployed.bind(), name="edgetok")
    print(f"serving {folder.name} at http://{given.host}:{given.port}/v1", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()


if __name__ == "__main__":
    main()
