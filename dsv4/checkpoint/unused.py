"""Tensors that folders of V4 may hold and a text model does not use; they are left out, and a note says so.

The image encoder of V4-Flash-Vision-Exp    vision.*, aligner.*, image_*, and gate.bias_vl, the routing of image tokens
Copies of the embedding and the head        mtp.N.emb.tok_emb, mtp.N.embed, mtp.N.head: the prediction block shares both
Routing biases of hash layers               gate.bias beside gate.tid2eid: only image tokens would be routed with them
Rotary tables                               *.rotary_emb.*: computed here
"""

import re
from collections.abc import Iterable

_IMAGE_STARTS = ("vision.", "aligner.")
_IMAGE_TENSORS = frozenset({"image_start", "image_end", "image_newline", "image_pad"})
_COPY = re.compile(r"mtp\.\d+\.(emb\.tok_emb|embed|head)\.weight")
IMAGES = "the image encoder is left out: the model answers text only"
COPIES = "copies of embedding and head in the prediction block are left out: it shares both"
HASH_BIASES = "routing biases of hash layers are left out: they route by token"
ROTARY = "stored rotary tables are left out: they are computed"


def unused(names: Iterable[str]) -> dict[str, str]:
    """The tensors among `names` (released names) that no text model uses, each with the sentence of its kind."""
    found: dict[str, str] = {}
    names = frozenset(names)
    for name in names:
        if name.startswith(_IMAGE_STARTS) or name in _IMAGE_TENSORS or name.endswith(".gate.bias_vl"):
            found[name] = IMAGES
        elif name.startswith("mtp.") and _COPY.fullmatch(name):
            found[name] = COPIES
        elif name.endswith(".gate.bias") and f"{name.removesuffix('bias')}tid2eid" in names:
            found[name] = HASH_BIASES
        elif "rotary_emb." in name:
            found[name] = ROTARY
    return found
