"""Tune's workers: one that Ray's memory monitor has ended counts as lost, and its trial is tried again.

Of Ray's errors Tune (2.60) expects those of actors and of their tasks. Any other leaves `Tuner.fit` as a RuntimeError,
and all the trials stop with it, whoever took the memory.
"""

from __future__ import annotations

from typing import Any

from ray.air.execution._internal import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.execution import tune_controller


class WorkerOutOfMemory(RayActorError):
    """Ray's memory monitor has ended the worker."""


class Actors(RayActorManager):
    """What Tune starts its workers with."""

    def _actor_task_failed(self, tracked_actor_task: Any, exception: Exception) -> None:
        super()._actor_task_failed(tracked_actor_task, _of_actors(exception))

    def _actor_start_failed(self, tracked_actor: Any, exception: Exception) -> None:
        super()._actor_start_failed(tracked_actor, _of_actors(exception))


def count_as_lost() -> None:
    """Let every Tuner of this process take a worker that was ended for its memory for a lost one."""
    controller: Any = tune_controller
    controller.RayActorManager = Actors


def _of_actors(exception: Exception) -> Exception:
    return WorkerOutOfMemory(error_msg=str(exception)) if isinstance(exception, OutOfMemoryError) else exception
