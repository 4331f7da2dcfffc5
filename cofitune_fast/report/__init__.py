"""From report.json or comparison.json to what people read: page, pictures, table. Reads artefacts, never a model."""

from .analysis_page import write_analysis_page
from .comparison_view import comparison_table
from .html import write_report
from .schema import read_report
from .tables import methods_table, plain_table

__all__ = ["comparison_table", "methods_table", "plain_table", "read_report", "write_analysis_page", "write_report"]
