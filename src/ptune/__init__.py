"""ptune: any number of text classifiers from one frozen language model, by p-tuning."""

__version__ = "0.1.0"
