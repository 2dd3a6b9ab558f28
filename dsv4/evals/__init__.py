"""`dsv4 eval`: published benchmarks against a server with OpenAI's interface, on inspect-ai (the extra `eval`).

`suite` says what a suite is, and `suites` has one small file for each. `data` finds the rows of a suite, `answers`
extracts and compares what a model has said. `client` asks a server, `provider` and `task` show suites to inspect-ai,
which runs them, keeps transcripts and goes on with what was stopped. `run` puts a run together, `statistics` computes
its figures, `result` and `page` are what remains of it. Only `provider` and `task` import inspect-ai.
"""
