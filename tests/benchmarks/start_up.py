"""The least that a job of ours with Python workers does: what is taken off when speeds are compared."""

from spark_jobs.session import start_session

if __name__ == "__main__":
    with start_session("start-up") as spark:
        print(spark.range(10).mapInArrow(lambda batches: batches, "id long").count())
