"""GGUF files of DeepSeek-V4, as llama.cpp and flyweight read them: `export` writes one, `source` opens one.

Read `container` for the format, `names` and `metadata` for what a V4 file holds.
"""
