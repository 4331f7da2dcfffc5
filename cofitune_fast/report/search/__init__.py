"""Search section of a page: nodes, choice and cost."""
