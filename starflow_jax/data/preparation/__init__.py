"""Preparation of data for training: sharded ArrayRecord from folders, tars, parquet and TensorFlow Datasets."""
