// The tools of MCP servers as tools of the chat.
import type { McpResult, McpTool } from "./mcp-client";
import type { OnProgress, Tool, ToolResult } from "./types";

export type CallTool = (
  name: string, values: unknown, signal: AbortSignal, onProgress: OnProgress,
) => Promise<McpResult>;

const LONGEST_NAME = 64;
const LONGEST_DESCRIPTION = 4000;

/** A server's tools. call: calls one of them. Their names begin with the server's, so that no two servers share one. */
export function mcpTools(server: string, tools: readonly McpTool[], call: CallTool): Tool[] {
  const taken = new Set<string>();
  return tools.map((tool) => ({
    name: nameOf(server, tool.name, taken),
    title: textOf(tool.title) || textOf(tool.annotations?.title) || tool.name,
    source: server,
    // what a server says of its own tools is no reason to trust them
    harmless: false,
    description: textOf(tool.description).slice(0, LONGEST_DESCRIPTION),
    parameters: tool.inputSchema ?? { type: "object", properties: {} },
    run: async (values, signal, onProgress) => resultOf(await call(tool.name, values, signal, onProgress)),
  }));
}

/** A name that requests accept: letters, digits, - and _, at most 64 of them. */
function nameOf(server: string, name: string, taken: Set<string>): string {
  const plain = `${server}_${name}`.replace(/[^A-Za-z0-9_-]+/g, "_").slice(0, LONGEST_NAME);
  let own = plain;
  for (let number = 2; taken.has(own); number += 1) own = `${plain.slice(0, LONGEST_NAME - 4)}_${number}`;
  taken.add(own);
  return own;
}

/** A result as text: the model reads text only. */
export function resultOf({ content, structuredContent, isError }: McpResult): ToolResult {
  const parts = (Array.isArray(content) ? content : []).map(partText).filter((part) => part !== "");
  if (parts.length === 0 && structuredContent !== undefined) parts.push(JSON.stringify(structuredContent));
  return { text: parts.join("\n\n") || "(no content)", failed: isError === true };
}

function partText(part: unknown): string {
  if (typeof part !== "object" || part === null) return "";
  const { type, text, data, mimeType, uri, name, resource } = part as Record<string, unknown>;
  if (type === "text") return textOf(text);
  if (type === "resource_link") return `[${textOf(name) || "link"}: ${textOf(uri)}]`;
  if (type === "resource" && typeof resource === "object" && resource !== null) {
    const inner = resource as Record<string, unknown>;
    return textOf(inner.text) || `[${textOf(inner.uri)}: ${textOf(inner.mimeType) || "binary"}, not shown]`;
  }
  const bytes = Math.floor((textOf(data).length * 3) / 4);
  return `[${textOf(type) || "part"} ${textOf(mimeType)}, ${bytes} bytes, not shown: the model reads text only]`;
}

function textOf(value: unknown): string {
  return typeof value === "string" ? value : "";
}
