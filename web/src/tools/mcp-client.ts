// A client of the Model Context Protocol, as far as tools go.
import { ApiError } from "../api/errors";
import type { OnProgress } from "./types";

/** Sends messages; `McpTransport` does so over HTTP. */
export interface Transport {
  version: string;
  readonly hasSession: boolean;
  forget: () => void;
  post: (message: unknown, signal?: AbortSignal) => AsyncGenerator<unknown>;
  close: () => void;
}

export interface McpTool {
  name: string;
  title?: string;
  description?: string;
  inputSchema?: Record<string, unknown>;
  annotations?: { title?: string };
}

/** What a call gave back. */
export interface McpResult {
  content?: unknown;
  structuredContent?: unknown;
  isError?: unknown;
}

/**
 * The newest first: the version that the client proposes. From 2025-11-25 on a server may end a stream before its
 * answer and expect the client to ask for the rest, which this client does not.
 */
const VERSIONS = ["2025-06-18", "2025-03-26", "2024-11-05"];
const MOST_PAGES = 20;
const MOST_TOOLS = 500;
const METHOD_NOT_FOUND = -32601;

type Message = Record<string, unknown>;

/** One server. A session that the server has ended is opened again with the next request. */
export class McpClient {
  #ids = 0;

  constructor(private readonly transport: Transport) {}

  /** The tools of the server. Throws Error or ApiError that says what is wrong. */
  async listTools(signal?: AbortSignal): Promise<McpTool[]> {
    const tools: McpTool[] = [];
    let cursor: unknown;
    for (let page = 0; page < MOST_PAGES && tools.length < MOST_TOOLS; page += 1) {
      const result = await this.#ask("tools/list", cursor === undefined ? {} : { cursor }, signal);
      if (Array.isArray(result.tools)) tools.push(...(result.tools as unknown[]).filter(isTool));
      cursor = result.nextCursor;
      if (cursor === undefined || cursor === null) break;
    }
    return tools.slice(0, MOST_TOOLS);
  }

  /** Calls a tool. Throws Error or ApiError; a tool that fails is a result with `isError`. */
  async call(name: string, values: unknown, signal: AbortSignal, onProgress: OnProgress): Promise<McpResult> {
    return this.#ask("tools/call", { name, arguments: values }, signal, onProgress);
  }

  close(): void {
    this.transport.close();
  }

  async #open(signal?: AbortSignal): Promise<void> {
    const params = { protocolVersion: VERSIONS[0], capabilities: {}, clientInfo: { name: "dsv4", version: "0.1.0" } };
    const result = await this.#request("initialize", params, signal);
    const version = String(result.protocolVersion);
    if (!VERSIONS.includes(version)) {
      this.close();
      throw new Error(`the server speaks version ${version.slice(0, 40)} of the protocol; known are ${VERSIONS.join(", ")}`);
    }
    this.transport.version = version;
    await this.#tell({ jsonrpc: "2.0", method: "notifications/initialized" }, signal);
  }

  async #ask(method: string, params: Message, signal?: AbortSignal, onProgress?: OnProgress): Promise<Message> {
    if (!this.transport.version) await this.#open(signal);
    try {
      return await this.#request(method, params, signal, onProgress);
    } catch (error) {
      // the server has forgotten the session, so it did nothing with the request
      if (!(error instanceof ApiError && error.status === 404 && this.transport.hasSession)) throw error;
      this.transport.forget();
      await this.#open(signal);
      return this.#request(method, params, signal, onProgress);
    }
  }

  async #request(method: string, params: Message, signal?: AbortSignal, onProgress?: OnProgress): Promise<Message> {
    this.#ids += 1;
    const id = this.#ids;
    const meta = onProgress ? { _meta: { progressToken: id } } : {};
    const stopped = () => {
      const cancelled = { requestId: id, reason: "stopped by the user" };
      void this.#tell({ jsonrpc: "2.0", method: "notifications/cancelled", params: cancelled }).catch(() => undefined);
    };
    if (method !== "initialize") signal?.addEventListener("abort", stopped);
    try {
      for await (const message of this.transport.post({ jsonrpc: "2.0", id, method, params: { ...params, ...meta } }, signal)) {
        if (!isObject(message)) continue;
        if (typeof message.method === "string") this.#heard(message, onProgress);
        else if (message.id === id) return resultOf(message);
      }
    } finally {
      signal?.removeEventListener("abort", stopped);
    }
    throw new Error("the server ended its answer too early");
  }

  /** A notification or a request of the server. */
  #heard({ method, id, params }: Message, onProgress?: OnProgress): void {
    if (method === "notifications/progress" && isObject(params)) onProgress?.(progressText(params));
    if (id === undefined) return;
    const error = { code: METHOD_NOT_FOUND, message: "this client has tools only" };
    const answer = method === "ping" ? { result: {} } : { error };
    void this.#tell({ jsonrpc: "2.0", id, ...answer }).catch(() => undefined);
  }

  async #tell(message: Message, signal?: AbortSignal): Promise<void> {
    for await (const _ of this.transport.post(message, signal)) {
      // an answer to what needs none
    }
  }
}

function resultOf(message: Message): Message {
  const { error, result } = message;
  if (isObject(error)) throw new Error(String(error.message ?? "the server refused the request"));
  return isObject(result) ? result : {};
}

function progressText({ progress, total, message }: Message): string {
  if (typeof message === "string") return message.slice(0, 200);
  return typeof total === "number" ? `${Number(progress)} of ${total}` : String(Number(progress));
}

function isObject(value: unknown): value is Message {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isTool(value: unknown): value is McpTool {
  return isObject(value) && typeof value.name === "string" && value.name !== "";
}
