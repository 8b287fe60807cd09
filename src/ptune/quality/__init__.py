"""Whether to trust a classifier, and the data it learns from."""
