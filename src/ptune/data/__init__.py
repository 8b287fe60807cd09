"""Datasets: GLUE tasks and the files of users."""
