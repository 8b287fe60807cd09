"""Prompts: their configuration, encoder, and mechanisms inside a frozen backbone."""
