"""The evaluators: one base class, one module for each method."""
