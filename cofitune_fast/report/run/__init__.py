"""Page of a report.json: headline, tables and pictures of one run."""
