"""Models by name: where a pulled model lies, and how one is fetched from a hub. No torch at import.

Read `names` (what a name means), then `folders` (where a pulled model lies), then `pull` (how it gets there).
"""

from dsv4.hub.folders import find_pulled, title
from dsv4.hub.names import RELEASED, Repository, repository

__all__ = ["RELEASED", "Repository", "find_pulled", "repository", "title"]
