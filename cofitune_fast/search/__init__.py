"""The tree search over regions: its space, the search itself and its journal."""

from .journal import Journal
from .space import SPACES, Candidate, Level, children, space_levels
from .tree import Node, Observer, SearchResult, Silent, tree_search

__all__ = ["SPACES", "Candidate", "Journal", "Level", "Node", "Observer", "SearchResult", "Silent", "children",
           "space_levels", "tree_search"]
