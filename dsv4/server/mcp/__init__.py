"""MCP servers (Model Context Protocol) for the page: programs on this machine that the owner of the server allows.

`allowed` reads the list, `process` talks to one program over its standard input and output, `sessions` starts and ends
programs, and `routes` gives each to the page as a streamable HTTP server at `/mcp/NAME`.
"""

from dsv4.server.mcp.allowed import AllowedMcp

__all__ = ["AllowedMcp"]
