"""One file for each suite: its prompt, its scorer, where its data is, and the published figures."""
