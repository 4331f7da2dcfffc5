"""Pages, pictures and tables made from report.json, comparison.json or analysis.json; no model is needed."""

from .analysis.page import write_analysis_page
from .comparison.changes import changes_table
from .comparison.rows import comparison_table
from .read import read_report
from .run.tables import methods_table, plain_table
from .write import write_report

__all__ = ["changes_table", "comparison_table", "methods_table", "plain_table", "read_report", "write_analysis_page",
           "write_report"]
