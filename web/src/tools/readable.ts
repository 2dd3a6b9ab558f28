// What a model or an MCP server wrote, made fit to be shown: it is always text, and it must not look like another text.

/** What hides or turns around the text beside it: controls, bidirectional marks, zero-width characters. */
const TRICKS = /[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;
const LONGEST_TITLE = 80;

/** A name in one line. */
export function readableName(text: string): string {
  const plain = text.replace(TRICKS, "\ufffd").trim();
  return plain.length > LONGEST_TITLE ? `${plain.slice(0, LONGEST_TITLE)}…` : plain;
}

/** The values of a call for people: each name with its text. What is no JSON (yet) is one text without a name. */
export function readableArguments(text: string): { name: string; text: string }[] {
  let values: unknown;
  try {
    values = JSON.parse(text);
  } catch {
    return text.trim() ? [{ name: "", text }] : [];
  }
  if (typeof values !== "object" || values === null || Array.isArray(values)) return [{ name: "", text }];
  return Object.entries(values).map(([name, value]) => ({
    name: readableName(name),
    text: typeof value === "string" ? value : JSON.stringify(value, null, 2),
  }));
}
