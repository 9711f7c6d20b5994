"""Evaluate a black-box function over thousands of configurations and never be taken down by it."""
