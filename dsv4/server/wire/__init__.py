"""HTTP in both directions: bodies, JSON, server-sent events, errors, responses. Independent of the dialects."""
