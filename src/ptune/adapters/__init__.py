"""Adapters: the files of a trained classifier, on disk and on the Hub."""
