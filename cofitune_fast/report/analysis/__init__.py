"""Page of an analysis.json, which shows where the speciality enters."""
