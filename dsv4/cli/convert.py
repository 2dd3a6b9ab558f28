"""`dsv4 convert`: a checkpoint folder in another layout, a GGUF file of a folder, a folder of a GGUF file."""

from pathlib import Path
from typing import Literal

Experts = Literal["fp4", "fp8", "bf16", "w4a16", "q8_0", "f16", "fp32"]
Dtype = Literal["release", "base", "bf16", "fp32", "q8_0", "f16"]


def convert(
    src: Path,
    dst: Path,
    *,
    experts: Experts | None = None,
    dtype: Dtype | None = None,
    adapter: Path | None = None,
    resume: bool = True,
    requantize: bool = False,
) -> None:
    """Write a checkpoint in another layout, or as a GGUF file where DST ends in .gguf.

    An interrupted conversion to a folder continues when the command is repeated.

    Parameters
    ----------
    src
        Folder with config.json and safetensors files, or the name of a pulled model; also one that another quantiser
        wrote (NVFP4, W4A16, ...), or a GGUF file of DeepSeek-V4.
    dst
        New folder to write, which must not hold a finished checkpoint; or a new file that ends in .gguf.
    experts
        How routed experts are stored (release: fp4 or fp8; bf16: also fp4 or w4a16, which is 4-bit integers of
        compressed-tensors; fp32: also fp4; .gguf: fp4 is MXFP4, or q8_0, f16, bf16, fp32). By default as in the source,
        fp4 for NVFP4 and other 4-bit forms; fp4 to fp8 is lossless.
    dtype
        release (the default): FP8 with e8m0 scales. base: FP8 with float32 scales. bf16, fp32: no quantisation.
        For a .gguf file q8_0 (the default), f16, bf16 or fp32.
    adapter
        Folder of a LoRA adapter whose changes are added to the weights before they are stored.
    resume
        Continue an interrupted conversion; --no-resume discards its files in dst and starts again.
    requantize
        Round FP4 experts whose scales differ too much for exact FP8 (more than 2^14 within a tile); by default such a
        weight is an error.
    """
    from dsv4.cli.flags import naming_arguments

    if dst.name.lower().endswith(".gguf"):  # a name that is only the ending has no suffix
        if requantize:
            raise ValueError("--requantize is for FP8 experts of a folder; a .gguf file has none")
        with naming_arguments():
            _to_gguf(src, dst, experts, dtype, adapter)
    else:
        _to_folder(src, dst, experts, dtype, adapter, resume, requantize)


def _to_folder(
    src: Path,
    dst: Path,
    experts: Experts | None,
    dtype: Dtype | None,
    adapter: Path | None,
    resume: bool,
    requantize: bool,
) -> None:
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
            dtype=dtype or "release",
            adapter=adapter,
            resume=resume,
            requantize=requantize,
            progress=show,
            report=sentences.append,
        )
    for sentence in sentences:
        print(sentence, file=sys.stderr)
    print(f"{dst}: complete, layout {layout.name}", file=sys.stderr)


def _to_gguf(src: Path, dst: Path, experts: Experts | None, dtype: Dtype | None, adapter: Path | None) -> None:
    import sys

    from dsv4.checkpoint.gguf.export import export_gguf
    from dsv4.cli.folders import model_folder
    from dsv4.cli.progress import byte_progress
    from dsv4.files import naming

    if adapter is not None:
        raise ValueError("--adapter goes with a folder: convert to one first, then that one to a .gguf file")
    sentences: list[str] = []
    with byte_progress("writing") as show, naming(dst):
        types = export_gguf(
            model_folder(src), dst, dtype=dtype or "q8_0", experts=experts, progress=show, report=sentences.append
        )
    for sentence in sentences:
        print(sentence, file=sys.stderr)
    print(f"{dst}: complete, {types}", file=sys.stderr)
