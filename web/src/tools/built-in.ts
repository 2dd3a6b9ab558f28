// The tools that every page has.
import { calculate, FUNCTION_NAMES, numberText } from "./calculator";
import { runJavaScript } from "./javascript";
import type { Tool } from "./types";

export const BUILT_IN = "Built in";

const CALCULATOR: Tool = {
  name: "calculator",
  title: "Calculator",
  source: BUILT_IN,
  harmless: true,
  description: `Computes an arithmetic expression exactly as written. Knows + - * / % ^ ! ( ), pi, e and ${FUNCTION_NAMES.join(", ")}.`,
  parameters: {
    type: "object",
    properties: { expression: { type: "string", description: "For example (17 + 25) * sqrt(2)" } },
    required: ["expression"],
  },
  run: async ({ expression }) => ({ text: numberText(calculate(textOf("expression", expression))), failed: false }),
};

const JAVASCRIPT: Tool = {
  name: "javascript",
  title: "JavaScript",
  source: BUILT_IN,
  harmless: false,
  description:
    "Runs JavaScript in a sandbox without network and page, for at most 5 seconds. " +
    "Returns what console.log prints and the value of the last expression; await and return may be used.",
  parameters: {
    type: "object",
    properties: { code: { type: "string", description: "For example [3, 1, 2].sort().join(' ')" } },
    required: ["code"],
  },
  run: async ({ code }, signal) => runJavaScript(textOf("code", code), signal),
};

export const BUILT_IN_TOOLS: readonly Tool[] = [CALCULATOR, JAVASCRIPT];

function textOf(name: string, value: unknown): string {
  // a model may write a number as a number
  if (typeof value === "number") return String(value);
  if (typeof value !== "string") throw new Error(`"${name}" must be a text`);
  return value;
}
