"""What the Python workers have in common."""

import gc


def begin_task() -> None:
    """Leave what is loaded by now out of the collection of garbage that Spark's worker does after every task.

    It would walk the hundred thousands of objects that numba, pyarrow and pyspark consist of: 40 ms a task, which on
    a job of many small ones was a tenth of all processor time.
    """
    gc.freeze()
