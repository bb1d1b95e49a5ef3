"""The least that a Spark job with Python workers does: what is taken off when speeds are compared."""

from pyspark.sql import SparkSession

if __name__ == "__main__":
    spark = SparkSession.builder.appName("start-up").getOrCreate()
    print(spark.range(10).mapInArrow(lambda batches: batches, "id long").count())
    spark.stop()
