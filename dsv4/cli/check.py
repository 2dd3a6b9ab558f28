"""`dsv4 check`: is a checkpoint folder, or a GGUF file, complete and consistent?"""

from pathlib import Path


def check(folder: Path, *, deep: bool = False, json: bool = False) -> None:
    """Check a checkpoint folder against its config without loading it. Exits with 1 when there are problems.

    Parameters
    ----------
    folder
        Folder with config.json and safetensors files, the name of a pulled model, or a GGUF file.
    deep
        Read every value and look for NaN and infinity; otherwise only where loading would.
    json
        Print the report as one JSON object.
    """
    import json as json_format

    from dsv4.api.tokenizer import check_tokenizer
    from dsv4.checkpoint.check import check_folder
    from dsv4.checkpoint.gguf.check import check_gguf
    from dsv4.checkpoint.gguf.source import is_gguf
    from dsv4.cli.folders import model_folder
    from dsv4.observe import printable

    folder = model_folder(folder)
    gguf = is_gguf(folder)
    check_model = check_gguf if gguf else check_folder
    if deep and not json:
        from dsv4.cli.progress import byte_progress

        with byte_progress("reading") as show:
            report = check_model(folder, deep=True, progress=show)
    else:
        report = check_model(folder, deep=deep)
    if not gguf:
        report = check_tokenizer(report)
    if json:
        print(json_format.dumps(report.to_dict(), ensure_ascii=False))
    else:
        for problem in report.problems:
            print(printable(problem))
        for note in report.notes:
            print(f"note: {printable(note)}")
        size = f"{report.tensors} tensors in {report.files} files, {report.bytes / 2**30:.2f} GiB"
        verdict = "ok" if report.ok else f"{len(report.problems)} problem{'s' if len(report.problems) > 1 else ''}"
        print(f"{folder}: {verdict}: layout {report.layout or 'unknown'}, {size}")
    if not report.ok:
        raise SystemExit(1)
