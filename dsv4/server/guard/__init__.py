"""Who may use the server, and how much: keys, limits, origin, sizes, slow connections, and the outermost middleware."""
