"""Pure tensor functions, one folder per operation: the contract in `__init__`, a plain torch `reference` beside
every faster implementation. `backend.choose` picks; nothing here knows of models, caches or files."""
