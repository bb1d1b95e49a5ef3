"""training/train.py whose evaluations from step SLOW on never end by themselves; the file EVALUATING tells of one."""

import os
import time
from pathlib import Path

from tokenizer.command_line import run
from training import steps, train


def slowly(evaluate):
    def evaluated(engine, batches, processes, stops):
        if engine.global_steps >= int(os.environ["SLOW"]):
            Path(os.environ["EVALUATING"]).touch()
            while not stops():
                time.sleep(0.05)
        return evaluate(engine, batches, processes, stops)

    return evaluated


steps.evaluate = slowly(steps.evaluate)

if __name__ == "__main__":
    run(train.main)
