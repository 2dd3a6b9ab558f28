"""Pure tensor functions, one folder per operation: the contract in `__init__`, a plain torch `reference` beside every
faster implementation. `backend.dispatch` chooses. Nothing here depends on models, caches or files."""
