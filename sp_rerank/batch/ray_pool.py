"""The engine on a Ray cluster: an actor a worker, on the cluster that RAY_ADDRESS names, else on one of this machine.

Ray restarts nothing here (`max_restarts=0`): a restarting actor answers at once with an error and would drain the list
(ray-project/ray issue 44719). A dead actor is replaced by a new one, which gets work when it is ready.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sp_rerank.batch.drive import Event
from sp_rerank.batch.order import Order, Outcome
from sp_rerank.batch.packs import Pack
from sp_rerank.batch.worker import UnitMaker
from sp_rerank.errors import SpRerankError, UsageError

log = logging.getLogger(__name__)

ASKED_EVERY = 5.0
"""Seconds after which an actor is asked again whether its unit goes on."""


class Worker:
    """What an actor is: a worker of `sp_rerank.batch.worker`. One method runs while another is asked."""

    def __init__(self) -> None:
        self._maker: UnitMaker | None = None
        self._batches = 0

    def start(self, order: str) -> dict[str, Any]:
        """Load the models; {"ready": ..} or why not."""
        try:
            self._maker = UnitMaker(Order.from_json(order))
        except SpRerankError as error:
            return {"ready": False, "code": error.exit_code, "error": str(error)}
        return {"ready": True}

    def make(self, pack: dict[str, Any]) -> list[dict[str, Any]]:
        """The outcomes of a pack."""
        assert self._maker
        return [outcome.to_record() for outcome in self._maker.make(Pack.from_record(pack), self._count)]

    def _count(self) -> None:
        self._batches += 1

    def batches(self) -> int:
        """How many batches of images were made so far."""
        return self._batches


class RayPool:
    """Workers as actors; a `sp_rerank.batch.drive.Pool`.

    Args:
        order: What they make.
        cpu: Whether they need no GPU.

    Raises:
        UsageError: If ray is not installed, or the cluster cannot be joined.

    Attributes:
        places: How many workers the cluster has room for now.
    """

    def __init__(self, order: Order, *, cpu: bool) -> None:
        try:
            import ray
        except ImportError as error:
            raise UsageError("the engine ray needs ray; pip install sp-rerank[ray]") from error
        self._ray: Any = ray
        self._order = order.to_json()
        self._mine = not ray.is_initialized()
        if self._mine:
            try:
                ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise UsageError(f"no Ray cluster: {error}; start one, or set RAY_ADDRESS to that of one") from error
        resources: Mapping[str, float] = ray.cluster_resources()
        gpus = 0 if cpu else int(resources.get("GPU", 0))
        self.places = gpus or max(1, int(resources.get("CPU", 1)) // order.threads)
        log.info("Ray at %s: %d workers", ray.get_runtime_context().gcs_address, self.places)
        environment = {"OMP_NUM_THREADS": str(order.threads), "TOKENIZERS_PARALLELISM": "false"}
        self._actor = ray.remote(Worker).options(
            num_cpus=order.threads, num_gpus=1 if gpus else 0, max_restarts=0, max_task_retries=0, max_concurrency=2,
            runtime_env={"env_vars": environment},
        )  # fmt: skip
        self._actors: dict[int, Any] = {}
        self._flight: dict[Any, tuple[int, str]] = {}
        self._asked: dict[int, float] = {}
        self._batches: dict[int, int] = {}
        self._hired = 0

    def hire(self) -> int:
        """As `Pool.hire`."""
        worker = self._hired
        self._hired += 1
        self._actors[worker] = self._actor.remote()
        self._flight[self._actors[worker].start.remote(self._order)] = worker, "start"
        return worker

    def give(self, worker: int, pack: Pack) -> None:
        """As `Pool.give`."""
        self._flight[self._actors[worker].make.remote(pack.to_record())] = worker, "make"
        self._asked[worker] = time.monotonic()

    def wait(self, seconds: float) -> Sequence[Event]:
        """As `Pool.wait`."""
        self._ask()
        if not self._flight:
            time.sleep(seconds)
            return []
        done, _ = self._ray.wait(list(self._flight), num_returns=1, timeout=seconds)
        return [event for reference in done if (event := self._event(reference))]

    def _ask(self) -> None:
        """Ask the actors whose unit takes long how far they are."""
        now = time.monotonic()
        for worker, asked in list(self._asked.items()):
            if now - asked > ASKED_EVERY:
                self._asked[worker] = now
                self._flight[self._actors[worker].batches.remote()] = worker, "batches"

    def _event(self, reference: Any) -> Event | None:
        worker, what = self._flight.pop(reference)
        if worker not in self._actors:
            return None
        try:
            value: Any = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            self._forget(worker)
            return Event(worker, "dead", error=": ".join(dict.fromkeys((lines[0][:200], lines[-1][:300]))))
        if what == "batches":
            before, self._batches[worker] = self._batches.get(worker, 0), value
            return Event(worker, "progress") if value != before else None
        if what == "make":
            self._asked.pop(worker, None)
            return Event(worker, "outcomes", tuple(map(Outcome.from_record, value)))
        if value["ready"]:
            return Event(worker, "ready")
        return Event(worker, "refused", error=value["error"], code=value["code"])

    def kill(self, worker: int) -> None:
        """As `Pool.kill`."""
        if worker in self._actors:
            self._ray.kill(self._actors[worker], no_restart=True)
            self._forget(worker)

    def _forget(self, worker: int) -> None:
        self._actors.pop(worker, None)
        self._asked.pop(worker, None)
        self._flight = {reference: entry for reference, entry in self._flight.items() if entry[0] != worker}

    def close(self) -> None:
        """As `Pool.close`; a cluster that was started here ends too."""
        for worker in list(self._actors):
            self.kill(worker)
        if self._mine:
            self._ray.shutdown()
