"""Doubles that ship with the package: a tiny model and a scripted generator, for our tests and for yours."""
