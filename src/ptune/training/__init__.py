"""Training with the Trainer of Transformers."""
