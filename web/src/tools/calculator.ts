// Arithmetic on a text: a parser by precedence, without eval.

const CONSTANTS: Record<string, number> = { pi: Math.PI, e: Math.E, tau: 2 * Math.PI };
const FUNCTIONS: Record<string, (...values: number[]) => number> = {
  sqrt: Math.sqrt, cbrt: Math.cbrt, exp: Math.exp, ln: Math.log, log: Math.log10, log2: Math.log2,
  sin: Math.sin, cos: Math.cos, tan: Math.tan, asin: Math.asin, acos: Math.acos, atan: Math.atan, atan2: Math.atan2,
  sinh: Math.sinh, cosh: Math.cosh, tanh: Math.tanh, abs: Math.abs, sign: Math.sign,
  floor: Math.floor, ceil: Math.ceil, round: Math.round, trunc: Math.trunc,
  min: Math.min, max: Math.max, hypot: Math.hypot, gcd, lcm: (a, b) => Math.abs(a * b) / gcd(a, b), factorial,
};
/** Functions of exactly one or two values; the others take any number. */
const TWO = new Set(["atan2", "gcd", "lcm"]);
const MANY = new Set(["min", "max", "hypot"]);
const LONGEST = 2000;
const DEEPEST = 200;

/** The functions that `calculate` knows. */
export const FUNCTION_NAMES = Object.keys(FUNCTIONS);

/**
 * The value of an expression: + - * / % (remainder with the sign of the divisor) ^ or **, !, parentheses, numbers,
 * pi, e, tau and FUNCTION_NAMES. Throws Error that says what is wrong and where.
 *
 * @example calculate("2^10 / (3 + 1)") // 256
 */
export function calculate(text: string): number {
  if (text.length > LONGEST) throw new Error(`an expression may have ${LONGEST} characters, this has ${text.length}`);
  const parser = new Parser(tokensOf(text));
  const value = parser.sum();
  parser.expectEnd();
  if (Number.isNaN(value)) throw new Error("the result is not a real number");
  return value;
}

/** A number as people write it: whole ones as they are, others without the noise of binary fractions. */
export function numberText(value: number): string {
  if (!Number.isFinite(value)) return value > 0 ? "infinity" : "-infinity";
  if (Number.isSafeInteger(value)) return String(value);
  return String(Number(value.toPrecision(15)));
}

interface Token {
  text: string;
  at: number;
  value?: number;
}

const NUMBER = /(?:0x[\da-f]+|0b[01]+|(?:\d[\d_]*\.?\d*|\.\d+)(?:e[+-]?\d+)?)/iy;
const WORD = /[a-z][a-z\d]*/iy;
const SIGN = /\*\*|[-+*/%^(),!×÷·−]/y;
const SAME = new Map([["**", "^"], ["×", "*"], ["·", "*"], ["÷", "/"], ["−", "-"]]);

function tokensOf(text: string): Token[] {
  const tokens: Token[] = [];
  for (let at = 0; at < text.length; ) {
    if (/\s/.test(text[at] ?? "")) {
      at += 1;
      continue;
    }
    const found = [NUMBER, WORD, SIGN].map((kind) => matched(kind, text, at));
    const [number, word, sign] = found;
    const piece = number ?? word ?? sign;
    if (piece === undefined) throw new Error(`"${text[at]}" at position ${at + 1} is not understood`);
    if (number !== undefined) tokens.push({ text: number, at, value: Number(number.replaceAll("_", "")) });
    else tokens.push({ text: SAME.get(piece) ?? piece.toLowerCase(), at });
    at += piece.length;
  }
  return tokens;
}

function matched(kind: RegExp, text: string, at: number): string | undefined {
  kind.lastIndex = at;
  return kind.exec(text)?.[0];
}

class Parser {
  #at = 0;
  #depth = 0;

  constructor(private readonly tokens: readonly Token[]) {}

  sum(): number {
    this.#depth += 1;
    if (this.#depth > DEEPEST) throw new Error(`parentheses may be nested ${DEEPEST} deep`);
    let value = this.#product();
    for (let sign = this.#take("+", "-"); sign; sign = this.#take("+", "-")) {
      const next = this.#product();
      value = sign === "+" ? value + next : value - next;
    }
    this.#depth -= 1;
    return value;
  }

  expectEnd(): void {
    const token = this.tokens[this.#at];
    if (token) throw new Error(`"${token.text}" at position ${token.at + 1} is not expected there`);
  }

  #product(): number {
    let value = this.#signed();
    for (let sign = this.#take("*", "/", "%"); sign; sign = this.#take("*", "/", "%")) {
      const next = this.#signed();
      if (sign !== "*" && next === 0) throw new Error("division by zero");
      if (sign === "*") value *= next;
      else if (sign === "/") value /= next;
      // as in mathematics: the remainder has the sign of the divisor
      else value = ((value % next) + next) % next;
    }
    return value;
  }

  /** -2^2 is -4, as in mathematics. */
  #signed(): number {
    let sign = 1;
    for (let next = this.#take("+", "-"); next; next = this.#take("+", "-")) if (next === "-") sign = -sign;
    return sign * this.#power();
  }

  #power(): number {
    const base = this.#factorial();
    // from the right: 2^3^2 is 2^9
    return this.#take("^") ? base ** this.#signed() : base;
  }

  #factorial(): number {
    let value = this.#single();
    while (this.#take("!")) value = factorial(value);
    return value;
  }

  #single(): number {
    const token = this.tokens[this.#at];
    if (!token) throw new Error("the expression ends too early");
    this.#at += 1;
    if (token.value !== undefined) return token.value;
    if (token.text === "(") return this.#inside();
    if (Object.hasOwn(CONSTANTS, token.text)) return CONSTANTS[token.text] as number;
    if (Object.hasOwn(FUNCTIONS, token.text)) return this.#called(token);
    throw new Error(`"${token.text}" at position ${token.at + 1} is not known`);
  }

  #inside(): number {
    const value = this.sum();
    if (!this.#take(")")) throw new Error("a parenthesis is not closed");
    return value;
  }

  #called({ text: name, at }: Token): number {
    if (!this.#take("(")) throw new Error(`${name} at position ${at + 1} needs its values in parentheses`);
    const values = [this.sum()];
    while (this.#take(",")) values.push(this.sum());
    if (!this.#take(")")) throw new Error(`the parenthesis of ${name} is not closed`);
    const wanted = TWO.has(name) ? 2 : 1;
    if (!MANY.has(name) && values.length !== wanted) throw new Error(`${name} takes ${wanted} value${wanted > 1 ? "s" : ""}`);
    return (FUNCTIONS[name] as (...values: number[]) => number)(...values);
  }

  #take(...texts: string[]): string | undefined {
    const token = this.tokens[this.#at];
    if (!token || token.value !== undefined || !texts.includes(token.text)) return undefined;
    this.#at += 1;
    return token.text;
  }
}

function factorial(value: number): number {
  if (!Number.isInteger(value) || value < 0) throw new Error("a factorial needs a whole number of at least 0");
  let product = 1;
  for (let factor = 2; factor <= Math.min(value, 171); factor += 1) product *= factor;
  return product;
}

function gcd(a: number, b: number): number {
  if (!Number.isInteger(a) || !Number.isInteger(b)) throw new Error("gcd and lcm need whole numbers");
  let [larger, smaller] = [Math.abs(a), Math.abs(b)];
  while (smaller) [larger, smaller] = [smaller, larger % smaller];
  return larger;
}
