"""The configs of the released models that are known without their files: Flash and Pro, which the package carries in
`dsv4/configs`, and the final weights, which have a draft head in place of the prediction block."""

from pathlib import Path

from dsv4.config.dspark import DSpark
from dsv4.config.model import ModelConfig

SHAPES = ("flash", "pro")
FINALS = {"flash-0731": ("flash", 256), "pro-0813": ("pro", 512)}  # the shape, and the rank of the draft head's bias
KNOWN = (*SHAPES, *FINALS)
FOLDER = Path(__file__).parents[1] / "configs"
_STAGES, _BLOCK, _NOISE = 3, 5, 128799


def released_config(name: str) -> ModelConfig:
    """The config of one of KNOWN."""
    if name not in FINALS:
        return ModelConfig.from_file(FOLDER / f"{name}.json")
    shape, rank = FINALS[name]
    config = released_config(shape).without_prediction()
    last = tuple(range(config.num_hidden_layers - _STAGES, config.num_hidden_layers))
    head = DSpark(_STAGES, _BLOCK, _NOISE, rank, last)
    return config.with_changes(dspark=head, compress_ratios=(*config.compress_ratios, *[0] * _STAGES))
