"""Checkpoints in the released format: names, reading, loading into a model, writing, quantising, converting.

Read `names` first: it is the table of a folder's tensors. `CheckpointError` is the only error for bad folders.
"""

from dsv4.checkpoint.check import CheckReport, check_folder, detect_layout
from dsv4.checkpoint.convert import convert
from dsv4.checkpoint.folder import ModelFolder, open_folder
from dsv4.checkpoint.format import CheckpointError, TensorSpec
from dsv4.checkpoint.loader import load_into, packed_problems, state_for
from dsv4.checkpoint.names import BASE, BF16, FP32, LAYOUTS, RELEASE, RELEASE_FP8, Layout, expected_tensors, shard_of
from dsv4.checkpoint.quantize import quantize_state, save_checkpoint
from dsv4.checkpoint.reader import CheckpointReader, raise_problems
from dsv4.checkpoint.shapes import check_shapes, shape_problems
from dsv4.checkpoint.writer import CheckpointWriter, shards_by_size
from dsv4.parameters import Parameter, Storage, parameters

__all__ = [
    "BASE",
    "BF16",
    "FP32",
    "LAYOUTS",
    "RELEASE",
    "RELEASE_FP8",
    "CheckReport",
    "CheckpointError",
    "CheckpointReader",
    "CheckpointWriter",
    "Layout",
    "ModelFolder",
    "Parameter",
    "Storage",
    "TensorSpec",
    "check_folder",
    "check_shapes",
    "convert",
    "detect_layout",
    "expected_tensors",
    "load_into",
    "open_folder",
    "packed_problems",
    "parameters",
    "quantize_state",
    "raise_problems",
    "save_checkpoint",
    "shape_problems",
    "shard_of",
    "shards_by_size",
    "state_for",
]
