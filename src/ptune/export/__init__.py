"""Exports: classifiers in forms that need no ptune."""
