"""Pre-training: losses, optimisers, schedules and what keeps a run stable. The model files do not know of it."""
