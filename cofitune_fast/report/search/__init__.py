"""The search in a report: nodes, choice and cost."""
