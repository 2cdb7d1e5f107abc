"""Reports: one page per search, ablation or comparison of searches, with its figures and tables in one folder."""

from dnas.report.figures import PICTURES
from dnas.report.svg import inline_svg
from dnas.report.write import watch_report, write_comparison, write_report

__all__ = ["PICTURES", "inline_svg", "watch_report", "write_comparison", "write_report"]
