"""Chat completions, as OpenAI and the official service have them."""
