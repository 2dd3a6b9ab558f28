"""Engines of other projects behind this one's interfaces: a `TokenGenerator` over vLLM or SGLang servers, by HTTP.

`generator.py::RemoteGenerator` is the generator. It cuts a constrained answer into requests (`stages.py`), chooses a
server (`routing.py`, `replica.py`), speaks the server's protocol (`protocol.py`, `vllm.py`, `sglang.py`) through
`http.py`, and checks that the server keeps to grammars (`grammar_check.py`). `survey.py` asks servers what they are.
Token ids go in and come out; text stays on this side. Nothing here loads torch.
"""
