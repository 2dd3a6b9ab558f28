"""Shared libraries of dsv4's CPU kernels. dsv4 finds them beside this file and never imports it."""

__version__ = "0.1.0"
