"""Chat completions in the form of OpenAI and of the official service."""
