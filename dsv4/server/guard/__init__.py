"""Access to the server: keys, limits, origin, sizes, slow connections, admission, and the outermost middleware."""
