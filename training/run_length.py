"""The length of a run where minutes are given: steps are timed before, and their number revised at checkpoints.

The count is what the learning rate follows. Each revision is part of the plan, so that the schedule stays a function
of plan and step.
"""

import logging
import math
from dataclasses import replace
from typing import TYPE_CHECKING

from training import engine as engines
from training import steps

if TYPE_CHECKING:
    from training.job import Job
    from training.meter import Meter
    from training.processes import Processes
    from training.run_folder import Plan
    from training.stopping import StopRequest

PROBE_SHARE, MOST_PROBE_SECONDS = 0.04, 60.0  # of the time to train, spent on timing steps before
log = logging.getLogger("train")


def with_known_length(job: "Job", everyone: "Processes", stop: "StopRequest") -> "Job | None":
    """The job with its steps counted; where only minutes are given, by timing an engine that is thrown away.

    None if the run was asked to stop meanwhile.
    """
    if not job.must_be_timed:
        return job
    assert job.length.budget_seconds is not None
    probe_seconds = min(MOST_PROBE_SECONDS, PROBE_SHARE * job.length.budget_seconds)
    if everyone.is_first:
        log.info(
            "timing steps for %d s, to plan %.0f s of training", math.ceil(probe_seconds), job.length.budget_seconds
        )
    engine = engines.build(job.plan.recipe, job.plan.model_config(), job.configuration, everyone)
    job.fit(engine.module)
    seconds = steps.seconds_per_step(engine, job.training, everyone, probe_seconds, stop)
    engines.discard(engine)
    del engine
    engines.collect()
    if seconds is None:
        return None
    return replace(job, plan=job.plan.ending(0, max(1, round(job.length.budget_seconds / seconds))))


def replanned(job: "Job", plan: "Plan", everyone: "Processes", meter: "Meter | None", step: int) -> "Plan":
    """The plan, with a new end if the run's minutes ask for one; on the disk, as the metrics, before a checkpoint."""
    if meter:
        meter.flush()
        if job.length.budget_seconds is not None and step < plan.max_steps:
            left = job.length.budget_seconds - meter.seconds
            plan = plan.keeping_time(step, left, meter.seconds_per_step)
            meter.max_steps = plan.max_steps
            job.folder.record(plan)
    return everyone.from_first(plan)
