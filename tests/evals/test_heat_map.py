"""Maps of two properties."""

from dsv4.evals.heat_map import heat_map, heat_map_html
from dsv4.evals.kept import KeptAnswer
from dsv4.evals.page import page
from dsv4.evals.result import result_of
from dsv4.evals.suite import Graded
from dsv4.evals.suites.needle import SUITE


def graded(length: int, depth: int, value: float) -> Graded:
    return Graded("i", 0, value, data={"length": length, "depth": depth})


def test_cells_are_means_and_may_be_empty() -> None:
    found = heat_map([graded(8192, 50, 1), graded(8192, 50, 0), graded(4096, 0, 1)], ("length", "depth"))
    assert found["rows"] == [4096, 8192]
    assert found["columns"] == [0, 50]
    assert found["values"] == [[100.0, None], [None, 50.0]]
    html = heat_map_html(found)
    assert "<th>4K</th>" in html
    assert "<th>50 %</th>" in html
    assert '<td style="background: hsl(60 60% 50% / 0.45)">50</td>' in html
    assert html.count("<td></td>") == 2


def test_names_are_escaped_and_keep_their_order() -> None:
    tasks = [Graded("i", 0, 1.0, data={"task": task, "length": 4096}) for task in ("z", "<b>", "a")]
    found = heat_map(tasks, ("task", "length"))
    assert found["rows"] == ["z", "<b>", "a"]
    assert "&lt;b&gt;" in heat_map_html(found)


def test_the_report_of_a_suite_with_axes_has_the_map() -> None:
    answers = [KeptAnswer(graded(4096, depth, float(depth < 50))) for depth in (0, 50, 100)]
    identity = {
        "suite": "needle", "mode": "high", "model": "m", "data": {"origin": "o", "revision": "", "sha256": {}},
        "grader": "rule", "seed": 0, "temperature": 1, "max_tokens": 9, "samples": 1,
    }  # fmt: skip
    result = result_of(SUITE, identity, answers, 3, facts={})
    assert result["map"]["values"] == [[100.0, 0.0, 0.0]]
    assert heat_map_html(result["map"]) in page(result, answers)
