"""Written arithmetic: the steps of a thought, each small enough for one look back and one small table.

A column sum is a line `417+88:7+8=15,5`: the numbers, the sum of their last digits, the digits of the result so far.
The next line holds what is left of the numbers, the carry as one more of them: `41+8+1:1+8=9+1=10,05`. Every token
depends on the line before; no place of a digit has to be counted.
"""

from collections.abc import Sequence


def add(numbers: Sequence[int]) -> list[str]:
    """Lines of the column sum of non-negative numbers; the last token run is the sum. At least two numbers."""
    lines, rest, done = [], list(numbers), ""
    while len(rest) > 1:
        last = max(rest) < 10
        digits = [n % 10 for n in rest]
        total, chain = digits[0], str(digits[0])
        for digit in digits[1:]:
            total += digit
            chain += f"+{digit}={total}"
        if last and not done:
            return [chain]
        done = f"{total if last else total % 10}{done}"
        lines.append(f"{chain if last else '+'.join(map(str, rest)) + ':' + chain},{done}")
        if last:
            return lines
        carry = total // 10
        rest = [n // 10 for n in rest if n >= 10] + ([carry] if carry else [])
    return [*lines, f"{rest[0]}:{rest[0]}{done}"]


def subtract(larger: int, smaller: int) -> list[str]:
    """Lines of the column difference, larger >= smaller >= 0; the last token run is the difference."""
    lines, done, borrow, a, b = [], "", 0, larger, smaller
    while True:
        last = a < 10
        rest = f"{a}" + (f"-{b}" if b or not lines else "") + ("-1" if borrow else "")
        if not b and not borrow and lines:
            done = f"{a}{done}"
            lines.append(f"{a}:{done}")
            break
        digit = a % 10 - b % 10 - borrow
        column = f"{a % 10}" + (f"-{b % 10}" if b or not lines else "") + ("-1" if borrow else "")
        borrow = int(digit < 0)
        column += f"+10={digit + 10}" if borrow else f"={digit}"
        if last and not lines:
            return [column]
        done = f"{digit % 10}{done}"
        lines.append(f"{column if last else rest + ':' + column},{done}")
        a, b = a // 10, b // 10
        if last:
            break
    plain = str(int(done))
    return lines if plain == done else [*lines, plain]


def multiply(a: int, b: int) -> list[str]:
    """Lines of a product of numbers up to two digits; the last token run is the product."""
    if b > 9 and a < 10:
        a, b = b, a
    if b < 10:
        return _times_digit(a, b)
    tens, ones = b // 10 * 10, b % 10
    high = [*_times_digit(a, b // 10), f"{a}*{tens}={a * tens}"]
    if not ones:
        return high
    split = f"{a}*{b}={a}*{ones}+{a}*{tens}"
    return [split, *_times_digit(a, ones), *high, *add((a * ones, a * tens))]


def _times_digit(a: int, digit: int) -> list[str]:
    if a < 10 or digit == 0:
        return [f"{a}*{digit}={a * digit}"]
    low, high = a % 10 * digit, a // 10 * digit
    carry = low // 10
    second = f"{a // 10}*{digit}={high}" + (f"+{carry}={high + carry}" if carry else "")
    return [f"{a}*{digit}:{a % 10}*{digit}={low},{low % 10}", f"{second},{a * digit}"]


def compare(a: int, b: int) -> str:
    """One line: the counts of digits where they differ (#), else the digits from the left, a's and b's side by side, up
    to a difference: `417?471:44=17<`. A sign stands behind what it compares, so that both are near."""
    x, y = str(a), str(b)
    if len(x) != len(y):
        return f"{a}?{b}:#{len(x)}#{len(y)}{'>' if a > b else '<'}"
    pairs = ""
    for p, q in zip(x, y, strict=True):
        pairs += f"{p}{q}{'=' if p == q else '>' if p > q else '<'}"
        if p != q:
            break
    return f"{a}?{b}:{pairs}"


def total(terms: Sequence[int]) -> list[str]:
    """Lines of a sum of two terms or more with signs, from left to right. Where there are more than two, what is left
    to add stands before each step, the value so far first, as in `add`: the thought ends where nothing is left. The
    last token run is the sum."""
    value, lines = terms[0], list[str]()
    for i, term in enumerate(terms[1:], start=1):
        if len(terms) > 2:
            if lines and lines[-1] == str(value):
                lines.pop()
            lines.append(str(value) + "".join(f"{n:+}" for n in terms[i:]))
        lines += _signed_pair(value, term)
        value += term
    return lines


def _signed_pair(a: int, b: int) -> list[str]:
    """Lines of `a+b`: a column sum where both have one sign, else a comparison and the difference; a negative result
    stands alone at the end."""
    if min(a, b) >= 0:
        return add((a, b))
    if max(a, b) <= 0:
        return [*(add((-a, -b)) if a and b else ()), f"{a + b}"]
    p, m = max(a, b), -min(a, b)
    lines = [compare(p, m)]
    if p == m:
        return [*lines, "0"]
    return [*lines, *(subtract(p, m) if p > m else [*subtract(m, p), f"-{m - p}"])]
