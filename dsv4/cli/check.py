"""`dsv4 check`: is a checkpoint folder complete and consistent?"""

from pathlib import Path


def check(folder: Path, *, json: bool = False) -> None:
    """Check a checkpoint folder against its config without loading it. Exits with 1 when there are problems.

    Parameters
    ----------
    folder
        Folder with config.json and safetensors files.
    json
        Print the report as one JSON object.
    """
    import json as json_format

    from dsv4.checkpoint.check import check_folder

    report = check_folder(folder)
    if json:
        print(json_format.dumps(report.to_dict(), ensure_ascii=False))
    else:
        for problem in report.problems:
            print(problem)
        size = f"{report.tensors} tensors in {report.files} files, {report.bytes / 2**30:.2f} GiB"
        verdict = "ok" if report.ok else f"{len(report.problems)} problems"
        print(f"{folder}: {verdict}: layout {report.layout or 'unknown'}, {size}")
    if not report.ok:
        raise SystemExit(1)
