"""Page of a comparison.json: curves, verdicts and tables."""
