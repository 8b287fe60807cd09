"""The `ptune` command."""
