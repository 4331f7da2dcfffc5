"""analysis.json: where the speciality enters."""
