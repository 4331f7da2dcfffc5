"""From report.json to what people read: a page, pictures and a table. Reads artefacts only, never a model."""

from .analysis_page import write_analysis_page
from .html import write_report
from .schema import read_report
from .tables import methods_table, plain_table

__all__ = ["methods_table", "plain_table", "read_report", "write_analysis_page", "write_report"]
