"""Completions that several test files parse."""

from dsv4.encoding import V4

PARAMETER = '<｜DSML｜parameter name="{}" string="{}">{}</｜DSML｜parameter>\n'
X1 = PARAMETER.format("x", "true", "1")
CALL_F = f'<｜DSML｜invoke name="f">\n{X1}</｜DSML｜invoke>\n'
CALL_G = (
    '<｜DSML｜invoke name="g">\n'
    + PARAMETER.format("code", "true", 'if a < b:\n\tprint("热海 </p>")')
    + PARAMETER.format("o", "false", '{"a": [1, 2]}')
    + "</｜DSML｜invoke>\n"
)
CALL_EMPTY = '<｜DSML｜invoke name="now">\n\n</｜DSML｜invoke>\n'


def block(*calls: str) -> str:
    return "\n\n<｜DSML｜tool_calls>\n" + "".join(calls) + "</｜DSML｜tool_calls>"


# (text, thinking_mode): accepted by the strict parser
WELL_FORMED = [
    (V4.eos, "chat"),
    ("Hello" + V4.eos, "chat"),
    ("why\n</think>\n\nBecause a < b｜c" + V4.eos, "thinking"),
    ("</think>" + V4.eos, "thinking"),
    (block(CALL_F), "chat"),
    ("pre\n" + block(CALL_F, CALL_G) + V4.eos, "chat"),
    ("r</think>pre" + block(CALL_G, CALL_EMPTY) + V4.eos, "thinking"),
    (block(), "chat"),
    (
        block('<｜DSML｜invoke name="a"b">\n' + PARAMETER.format('k"', "true", V4.eos) + "</｜DSML｜invoke>\n"),
        "chat",
    ),
    (
        block('<｜DSML｜invoke name="">\n' + PARAMETER.format("", "true", "</｜DSML｜invoke>") + "</｜DSML｜invoke>\n"),
        "chat",
    ),
]

# broken in every way we know, or in need of repair; the strict parser rejects them
BROKEN = [
    ("no end", "chat"),
    ("no close" + V4.eos, "thinking"),
    ("a</think>b</think>c<think>" + V4.eos + "x", "thinking"),
    ("｜DSML｜ <｜DSML｜parameter <｜DSML｜tool" + V4.eos, "chat"),
    ("reasoning" + block(CALL_F) + V4.eos, "thinking"),
    ("\n" + CALL_F + "</｜DSML｜tool_calls>", "chat"),
    (block(CALL_F) + " \n and more" + V4.eos, "chat"),
    (block(CALL_F + "junk"), "chat"),
    (block(CALL_F.replace("parameter>\n", "parameter> ")), "chat"),
    (block(CALL_F.replace("</｜DSML｜par", "/｜DSML｜par")), "chat"),
    (block(CALL_F.replace('"true"', '"yes"')), "chat"),
    (block(CALL_F.replace("invoke name", "invoke nam")), "chat"),
    (block(CALL_F.replace("parameter name", "parameter  name")), "chat"),
    (block(CALL_F.replace(X1, X1 + X1)), "chat"),
    (block(CALL_F.replace(X1, X1 + "junk" + X1)), "chat"),
    ("\n\n<｜DSML｜tool_calls>\n" + CALL_F + V4.eos, "chat"),
    (
        '\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="x" string="true">1' + V4.eos,
        "chat",
    ),
    ("\n\n<｜DSML｜tool_callsX", "chat"),
]
