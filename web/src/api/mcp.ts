// Messages to MCP servers over streamable HTTP: to programs that the server bridges, and to other addresses.
import { ApiError, asApiError, errorOf } from "./errors";
import { getJson, send } from "./http";
import { serverEvents } from "./sse";

/** What the server allows this page. */
export interface AllowedMcp {
  servers: ({ name: string; kind: "stdio"; path: string; last_lines: string[] } | { name: string; kind: "http"; url: string })[];
  /** Sites to which the page may connect. */
  allowed_origins: string[];
}

/** Asks the server for its list. Throws ApiError. */
export function allowedMcp(): Promise<AllowedMcp> {
  return getJson<AllowedMcp>("mcp", { retries: 0 });
}

/** Where an MCP server is. own: bridged by this server, so the key of the page goes along; token: for another one. */
export interface McpAddress {
  url: string;
  own: boolean;
  token?: string;
}

/** A session with one MCP server. `version` is set once it is agreed on. */
export class McpTransport {
  version = "";
  #session = "";

  constructor(private readonly address: McpAddress) {}

  /** Whether a session is open: a server that knows it no longer answers 404. */
  get hasSession(): boolean {
    return this.#session !== "";
  }

  forget(): void {
    this.#session = "";
    this.version = "";
  }

  /** Sends a message and gives the messages of the answer as they arrive. Throws ApiError. */
  async *post(message: unknown, signal?: AbortSignal): AsyncGenerator<unknown> {
    const headers = { ...this.#headers(), "content-type": "application/json", accept: "application/json, text/event-stream" };
    const response = await this.#fetch({ method: "POST", headers, body: JSON.stringify(message), signal: signal ?? null });
    this.#session = response.headers.get("mcp-session-id") ?? this.#session;
    if (response.status === 202 || response.status === 204) return;
    if (!response.headers.get("content-type")?.startsWith("text/event-stream")) {
      yield await response.json();
      return;
    }
    for await (const event of serverEvents(response)) {
      // an event without data only names the place from which a broken stream could be resumed
      if (!("comment" in event) && event.data) yield JSON.parse(event.data);
    }
  }

  /** Tells the server that the session is over. Nobody waits for the answer. */
  close(): void {
    if (this.#session) void this.#fetch({ method: "DELETE", headers: this.#headers(), keepalive: true }).catch(() => undefined);
    this.forget();
  }

  #headers(): Record<string, string> {
    const { token } = this.address;
    return {
      ...(this.#session ? { "mcp-session-id": this.#session } : {}),
      ...(this.version ? { "mcp-protocol-version": this.version } : {}),
      ...(token ? { authorization: `Bearer ${token}` } : {}),
    };
  }

  async #fetch(init: RequestInit): Promise<Response> {
    const { url, own } = this.address;
    if (own) return send(url, init);
    try {
      // cookies of that site are none of this page's business
      const response = await fetch(url, { ...init, credentials: "omit", referrerPolicy: "no-referrer" });
      if (!response.ok) throw await errorOf(response);
      return response;
    } catch (error) {
      if (!(error instanceof TypeError)) throw asApiError(error);
      throw new ApiError("unreachable", `${url} does not answer, or does not allow this page (CORS).`);
    }
  }
}
