"""The report of a run as one HTML file: figures, what was published, and transcripts."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from dsv4.evals.heat_map import heat_map_html
from dsv4.evals.kept import ANSWERS, KeptAnswer
from dsv4.evals.result import BASE, NO_COUNTS, comparison, shown
from dsv4.verify.html import document, table

TRANSCRIPTS = 400  # on the page; all are in the file of answers
LONGEST = 20_000  # characters of a text on the page


def page(result: Mapping[str, Any], answers: Sequence[KeptAnswer]) -> str:
    """The whole page. Everything that a model has said is escaped."""
    title = f"dsv4 eval: {result['suite']}, {result['mode']}, {result['model']}"
    body = [f'<p class="quiet">{escape(result["about"])}</p>', _verdict(result)]
    if "score" in result:
        body += [_figures(result), _published(result)]
    if "map" in result:
        body.append(f"<h2>Map, per cent</h2>{heat_map_html(result['map'])}")
    if "comparison" in result:
        body.append(f"<h2>Comparison</h2><p>{escape(comparison(result['comparison']))}</p>")
    body += [_settings(result), *_transcripts(answers)]
    return document(title, body)


def _verdict(result: Mapping[str, Any]) -> str:
    if "score" not in result:
        return '<p class="verdict bad">No answer</p>'
    unit = " %" if result["unit"] == "%" else f" {result['unit']}"
    text = f"{shown(result['score'])}{unit}"
    if not result["missing"]:
        return f'<p class="verdict">{escape(text)}</p>'
    reasons = "".join(f"<li>{times} times: {escape(why)}</li>" for why, times in result["problems"].items())
    text += f", but {result['missing']:,} of {result['answers'] + result['missing']:,} answers are missing"
    return f'<p class="verdict warn">{escape(text)}</p><ul>{reasons}</ul>'


def _figures(result: Mapping[str, Any]) -> str:
    rows = [("all", result["score"]), *result.get("groups", {}).items()]
    parts = [
        "<h2>Figures</h2>",
        table(
            ("group", "score", "items", "answers"),
            (
                (escape(name or "(no group)"), shown(mean), f"{mean['items']:,}", f"{mean['answers']:,}")
                for name, mean in rows
            ),
            numbers=1,
        ),
        '<p class="quiet">± is one standard error, over clusters of items that are not independent.</p>',
    ]
    tokens = result["tokens"]
    more = {
        **result["figures"],
        "tokens of an answer": tokens["answer_mean"],
        "share cut by the limit": tokens["cut"],
        "prompt tokens in all": tokens["prompt"],
        "answer tokens in all": tokens["answer"],
    }
    for name, count in (("answers", tokens["counted"]), ("prompts", tokens["prompts_counted"])):
        if 0 < count < result["answers"]:
            more[f"{name} with usage counts"] = count
    rows = ((escape(name), "unknown" if value is None else f"{value:,.4g}") for name, value in more.items())
    parts.append(table((), rows, numbers=1))
    if not tokens["counted"] and not tokens["prompts_counted"]:
        parts.append(f'<p class="quiet">Tokens are unknown: {NO_COUNTS}.</p>')
    if reason := result["facts"].get("no further figures"):
        parts.append(f'<p class="quiet">No further figures: {escape(reason)}.</p>')
    return "\n".join(parts)


def _published(result: Mapping[str, Any]) -> str:
    rows = [("<b>this run</b>", escape(result["mode"]), f"<b>{shown(result['score'])}</b>", "", "")]
    rows += [
        (
            escape(one["model"]),
            escape(one["mode"] or BASE),
            f"{one['value']:g}",
            escape(one["source"]),
            escape(one["setting"]),
        )
        for one in result["published"]
    ]
    return "<h2>Beside published figures</h2>" + table(("model", "mode", "score", "source", "setting"), rows)


def _settings(result: Mapping[str, Any]) -> str:
    data = result["data"]
    rows = {
        "data": data["origin"],
        "revision": data["revision"] or "not known",
        **{f"sha256 of {name}": value for name, value in data["sha256"].items()},
        **{name: result[name] for name in ("seed", "temperature", "max_tokens", "samples", "grader")},
        **result["facts"],
    }
    return "<h2>Settings</h2>" + table((), ((escape(name), escape(str(value))) for name, value in rows.items()))


def _transcripts(answers: Sequence[KeptAnswer]) -> list[str]:
    """Wrong answers first: they are what a reader looks for."""
    ordered = sorted(answers, key=lambda kept: kept.graded.value)
    note = f"{len(answers):,} answers, the worst first"
    if len(answers) > TRANSCRIPTS:
        note += f"; the first {TRANSCRIPTS} of them. All are in {ANSWERS}"
    return [f'<h2>Transcripts</h2><p class="quiet">{note}.</p>', *map(_transcript, ordered[:TRANSCRIPTS])]


def _transcript(kept: KeptAnswer) -> str:
    one = kept.graded
    colour = "good" if one.value == 1 else "bad" if one.value == 0 else "warn"
    head = f'<span class="{colour}">{one.value:.3g}</span> {escape(one.item)}, answer {one.sample + 1}'
    tokens = "tokens unknown" if one.tokens is None else f"{one.tokens:,} tokens"
    facts = f"{tokens}, {one.seconds:.1f} s, ended by {escape(one.finish or 'nothing')}"
    parts = [f"<h3>{escape(str(message['role']))}</h3>{_text(message.get('content'))}" for message in kept.messages]
    if reasoning := kept.answer.get("reasoning"):
        parts.append(f"<details><summary>reasoning</summary>{_text(reasoning)}</details>")
    parts.append(f"<h3>answer</h3>{_text(kept.answer.get('content'))}")
    if calls := kept.answer.get("calls"):
        parts.append(f"<h3>calls</h3>{_text(json.dumps(calls, ensure_ascii=False, indent=1))}")
    target = kept.target if isinstance(kept.target, str) else json.dumps(kept.target, ensure_ascii=False)
    rows = {"right": target, "found": kept.found, "why": kept.why}
    cells = "".join(f"<dt>{name}</dt><dd>{escape(_cut(text))}</dd>" for name, text in rows.items() if text)
    return (
        f"<details><summary>{head} <span class=quiet>{facts}</span></summary><dl>{cells}</dl>{''.join(parts)}</details>"
    )


def _text(value: Any) -> str:
    return f"<pre>{escape(_cut(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))}</pre>"


def _cut(text: str) -> str:
    """Both ends of a long text."""
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2
    return f"{text[:half]}\n[... {len(text) - LONGEST:,} characters ...]\n{text[-half:]}"
