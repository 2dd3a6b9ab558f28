"""Programs that a model wrote, run in processes of their own: with limits, without network."""
