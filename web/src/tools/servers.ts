// The MCP servers of this page: those that the server allows, and those that the user added.
import { signal } from "@preact/signals";
import { errorText } from "../api/errors";
import { type AllowedMcp, type McpAddress, McpTransport, allowedMcp } from "../api/mcp";
import { ownName } from "../store/owner";
import { readSetting, writeSetting } from "../store/settings";
import type { ToolChoice } from "../store/types";
import { BUILT_IN_TOOLS } from "./built-in";
import { McpClient } from "./mcp-client";
import { mcpTools } from "./mcp-tools";
import type { Tool } from "./types";

export interface Server {
  name: string;
  /** program: bridged by the server; address: the page connects itself; added: an address of the user. */
  kind: "program" | "address" | "added";
  address: McpAddress;
  state: "off" | "connecting" | "on" | "failed";
  /** Why it failed. */
  problem: string;
  tools: readonly Tool[];
}

interface Added {
  name: string;
  url: string;
}

const CONNECT_SECONDS = 130;
const ADDED = ownName("mcp.added");
const tokenOf = (server: string): string => ownName(`mcp.token.${server}`);

export const servers = signal<readonly Server[]>([]);
/** Sites of which the user may add servers. */
export const allowedOrigins = signal<readonly string[]>([]);

const clients = new Map<string, McpClient>();
const connecting = new Map<string, Promise<void>>();

/** Asks the server for its list. Servers that are connected stay so. Throws ApiError. */
export async function loadServers(): Promise<void> {
  const allowed = await allowedMcp();
  allowedOrigins.value = allowed.allowed_origins;
  const known = new Map(servers.value.map((server) => [server.name, server]));
  servers.value = [...listed(allowed), ...added()].map((server) => known.get(server.name) ?? server);
}

function listed({ servers: list }: AllowedMcp): Server[] {
  return list.map((entry) =>
    entry.kind === "stdio"
      ? off(entry.name, "program", { url: entry.path.replace(/^\//, ""), own: true })
      : off(entry.name, "address", { url: entry.url, own: false }),
  );
}

function added(): Server[] {
  return readSetting<Added[]>(ADDED, []).map(offAdded);
}

function offAdded({ name, url }: Added): Server {
  const token = readSetting(tokenOf(name), "", { session: true });
  return off(name, "added", { url, own: false, ...(token ? { token } : {}) });
}

function off(name: string, kind: Server["kind"], address: McpAddress): Server {
  return { name, kind, address, state: "off", problem: "", tools: [] };
}

function change(name: string, change: Partial<Server>): void {
  servers.value = servers.value.map((server) => (server.name === name ? { ...server, ...change } : server));
}

/** Connects to a server and lists its tools; its state says how that went. */
export function connect(name: string): Promise<void> {
  const running = connecting.get(name) ?? connectNow(name).finally(() => connecting.delete(name));
  connecting.set(name, running);
  return running;
}

async function connectNow(name: string): Promise<void> {
  const server = servers.value.find((one) => one.name === name);
  if (!server || server.state === "on") return;
  const client = new McpClient(new McpTransport(server.address));
  change(name, { state: "connecting", problem: "" });
  try {
    const tools = await client.listTools(AbortSignal.timeout(CONNECT_SECONDS * 1000));
    clients.set(name, client);
    change(name, { state: "on", tools: mcpTools(name, tools, (...call) => client.call(...call)) });
  } catch (error) {
    client.close();
    change(name, { state: "failed", problem: errorText(error) });
  }
}

export function disconnect(name: string): void {
  clients.get(name)?.close();
  clients.delete(name);
  change(name, { state: "off", problem: "", tools: [] });
}

// a page that closes ends the programs that it had started
globalThis.addEventListener?.("pagehide", () => {
  for (const client of clients.values()) client.close();
});

/** Adds a server of an allowed site. token: kept until this tab closes. Returns its name. Throws Error. */
export function addServer(url: string, token: string): string {
  const address = URL.canParse(url) ? new URL(url) : undefined;
  if (!address || !/^https?:$/.test(address.protocol)) throw new Error("An address begins with http:// or https://.");
  if (address.username || address.password) throw new Error("Write the token into its own field, not into the address.");
  if (!allowedOrigins.value.includes(address.origin)) {
    throw new Error(`This server does not allow ${address.origin}: it must stand in the file of dsv4 serve --mcp.`);
  }
  const names = new Set(servers.value.map(({ name }) => name));
  const base = address.host.replace(/[^A-Za-z0-9_-]+/g, "-").slice(0, 28);
  let name = base;
  for (let number = 2; names.has(name); number += 1) name = `${base}-${number}`;
  writeSetting(ADDED, [...readSetting<Added[]>(ADDED, []), { name, url }]);
  writeSetting(tokenOf(name), token || null, { session: true });
  servers.value = [...servers.value, offAdded({ name, url })];
  return name;
}

/** Forgets a server that the user added. */
export function removeServer(name: string): void {
  disconnect(name);
  writeSetting(ADDED, readSetting<Added[]>(ADDED, []).filter((one) => one.name !== name));
  writeSetting(tokenOf(name), null, { session: true });
  servers.value = servers.value.filter((one) => one.name !== name);
}

/** A tool by the name that the model uses. */
export function toolNamed(name: string): Tool | undefined {
  return allTools().find((tool) => tool.name === name);
}

function allTools(): Tool[] {
  return [...BUILT_IN_TOOLS, ...servers.value.flatMap(({ tools }) => tools)];
}

/** The tools of a choice, with their servers connected; `missing` names servers that are not there, and why. */
export async function readyTools(choice: ToolChoice | undefined): Promise<{ tools: Tool[]; missing: string[] }> {
  if (!choice?.on.length) return { tools: [], missing: [] };
  if (choice.servers.length && servers.value.length === 0) await loadServers();
  await Promise.all(choice.servers.map(connect));
  const missing = choice.servers.flatMap((name) => {
    const server = servers.value.find((one) => one.name === name);
    if (!server) return [`${name} is no longer allowed`];
    return server.state === "on" ? [] : [`${name}: ${server.problem}`];
  });
  return { tools: allTools().filter(({ name }) => choice.on.includes(name)), missing };
}
