"""What all requests of one server share: the model and its names, sampled turns, and the counts of everything."""

from dsv4.server.backend.shared import Backend, Settings

__all__ = ["Backend", "Settings"]
