"""What runs beside the steps of a job: its results, its failures, and its end."""

import time

import pytest
from pyspark.errors import AnalysisException

from spark_jobs.session import Aside


def test_what_is_done_aside_is_there_when_asked_for(spark):
    with Aside(spark) as aside:
        count, failing = aside.begin(spark.range(10).count), aside.begin(spark.range(3).toDF("n").select, "m")
        assert spark.range(5).count() == 5
        assert count.result() == 10
        with pytest.raises(AnalysisException):
            failing.result()


def test_what_is_under_way_aside_ends_with_the_block(spark, tmp_path):
    """Else a failed step's output, once removed, would be written again."""

    def slowly(batches):
        (tmp_path / "begun").touch()
        time.sleep(60)
        return batches

    begin = time.monotonic()
    with Aside(spark) as aside:
        rows = spark.range(1).mapInArrow(slowly, "id long")
        under_way = aside.begin(lambda: rows.write.parquet(str(tmp_path / "rows")))
        waiting = aside.begin(spark.range(1).count)
        while not (tmp_path / "begun").exists():
            time.sleep(0.05)
    assert time.monotonic() - begin < 30
    assert waiting.cancelled()
    assert "cancelled" in str(under_way.exception())
    assert not list(tmp_path.rglob("*.parquet"))
