"""What operators see: the engine, usage, training runs, the model. None of it slows generation."""
