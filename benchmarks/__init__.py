"""Measurements behind the project's numbers: speed, memory, start-up, quality."""
