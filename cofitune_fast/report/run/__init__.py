"""report.json: headline, tables and pictures of one run."""
