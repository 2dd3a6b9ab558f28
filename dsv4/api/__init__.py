"""The Python API: `load` turns a folder into a `LocalModel` that chats, completes and gives logits.

`dsv4.load` and `dsv4.LocalModel` are these. Nothing is imported here, so that the parts without torch stay without it.
"""
