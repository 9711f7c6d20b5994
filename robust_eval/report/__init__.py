"""One self-contained page about a search: `write_report`. It needs the extra ``report``."""

from robust_eval.report.page import write_report

__all__ = ["write_report"]
