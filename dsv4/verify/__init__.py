"""`dsv4 verify`: does an endpoint serve DeepSeek-V4 rightly? Over its HTTP interface alone, and without torch.

`run` goes through the checks, each a module: `surface`, `rendering`, `lengths`, `batches`, `calls`, `fixtures`.
`endpoint` speaks HTTP, `answer` brings whole answers and streams into one form, `survey` finds out what the endpoint
can do, `probe` is what a check works with, `findings` what it leaves, and `page` shows it.
"""
