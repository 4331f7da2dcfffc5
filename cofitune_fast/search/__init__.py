"""Tree search over regions: the space, strategies, executors, the race between nodes, and the journal."""

from .budget import Budget, Work
from .choice import Choice
from .journal import Journal
from .limits import Limits, Need
from .nodes import Node, Rung
from .observer import Observer, Silent
from .pace import Operations, Pace
from .results import SearchResult
from .run import Search, SearchSettings, node_rate
from .space import SPACES, Candidate, Level, children, space_levels
from .strategy import STRATEGIES, Strategy, named_strategy
from .work import search_work

__all__ = ["SPACES", "STRATEGIES", "Budget", "Candidate", "Choice", "Journal", "Level", "Limits", "Need", "Node",
           "Observer", "Operations", "Pace", "Rung", "Search", "SearchResult", "SearchSettings", "Silent", "Strategy",
           "Work", "children", "named_strategy", "node_rate", "search_work", "space_levels"]
