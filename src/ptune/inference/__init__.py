"""Classifying texts: one classifier, a bank of tasks, exported engines, files and jobs."""
