"""comparison.json: curves, verdicts and tables."""
