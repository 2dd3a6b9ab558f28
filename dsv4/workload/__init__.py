"""Requests as lengths, times and shared prefixes, without texts: what a benchmark sends and a simulation replays."""
