"""`dsv4 convert`: a checkpoint folder in another layout."""

from pathlib import Path
from typing import Literal


def convert(
    src: Path,
    dst: Path,
    *,
    experts: Literal["fp4", "fp8", "bf16"] | None = None,
    dtype: Literal["release", "base", "bf16", "fp32"] = "release",
    adapter: Path | None = None,
    resume: bool = True,
) -> None:
    """Write a checkpoint in another layout. An interrupted conversion continues when the command is repeated.

    Parameters
    ----------
    src
        Folder with config.json and safetensors files, or the name of a pulled model; also one that another quantiser
        wrote (NVFP4, W4A16, ...).
    dst
        New folder to write; must not hold a finished checkpoint.
    experts
        How routed experts are stored (release: fp4 or fp8). By default as in the source, fp4 for NVFP4 and
        other 4-bit forms; fp4 to fp8 is lossless.
    dtype
        release: FP8 with e8m0 scales. base: FP8 with float32 scales. bf16, fp32: no quantisation.
    adapter
        Folder of a LoRA adapter whose changes are added to the weights before they are stored.
    resume
        Continue an interrupted conversion; --no-resume discards its files in dst and starts again.
    """
    import sys

    from dsv4.checkpoint.convert import convert as convert_folder
    from dsv4.cli.folders import model_folder
    from dsv4.cli.progress import byte_progress
    from dsv4.files import naming

    src = model_folder(src)
    sentences: list[str] = []
    with byte_progress("converting") as show, naming(dst):
        layout = convert_folder(
            src,
            dst,
            experts=experts,
            dtype=dtype,
            adapter=adapter,
            resume=resume,
            progress=show,
            report=sentences.append,
        )
    for sentence in sentences:
        print(sentence, file=sys.stderr)
    print(f"{dst}: complete, layout {layout.name}", file=sys.stderr)
