"""What goes over the wire, in both directions: bodies, JSON, server-sent events, errors. Knows no dialect."""
