"""The Responses interface of OpenAI."""
