// What the chat knows of tools.

/** A JSON Schema of parameters. */
export type Schema = Record<string, unknown>;

/** A call that the model wrote. */
export type { Call as ToolCall } from "../store/types";

/** What a tool gave back: a text for the model and the reader. failed: the text says what went wrong. */
export interface ToolResult {
  text: string;
  failed: boolean;
}

/** Ways to say that a tool is still at work. */
export type OnProgress = (text: string) => void;

export interface Tool {
  /** The name that the model uses: letters, digits, - and _. No two tools share one. */
  name: string;
  /** The name for people. */
  title: string;
  description: string;
  parameters: Schema;
  /** Where it comes from: "Built in", or the name of an MCP server. */
  source: string;
  /** It changes nothing and reaches nobody, so it may run without a question. */
  harmless: boolean;
  /** Throws DOMException (AbortError) when stopped; every other fault is a result. */
  run: (values: Record<string, unknown>, signal: AbortSignal, onProgress: OnProgress) => Promise<ToolResult>;
}

/** As the server takes it in a request. */
export function asFunction(tool: Tool): unknown {
  const { name, description, parameters } = tool;
  return { type: "function", function: { name, description, parameters } };
}

/** The longest result that is kept and sent to the model, in characters. */
export const LONGEST_RESULT = 20_000;

/** A text of at most LONGEST_RESULT characters; what is missing is said at its end. */
export function shortened(text: string): string {
  if (text.length <= LONGEST_RESULT) return text;
  return `${text.slice(0, LONGEST_RESULT)}\n[${text.length - LONGEST_RESULT} more characters were cut]`;
}
