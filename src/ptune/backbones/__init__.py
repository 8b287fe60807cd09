"""Backbones: loading them, what is known about an architecture, and fast CPU kernels."""
