"""Generators of the data that the demo ships: `cd examples && python -m demo_data.generate OUT`."""
