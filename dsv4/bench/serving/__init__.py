"""The benchmark of a server by its HTTP interface: what is sent, how it is timed, and the report.

It loads no torch and knows nothing of an engine: any server of OpenAI's chat completions can be measured.
"""
