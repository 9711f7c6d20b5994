"""Executables as run functions: `Command`."""

from robust_eval.command.command import Command
from robust_eval.command.parsing import CommandResult

__all__ = ["Command", "CommandResult"]
