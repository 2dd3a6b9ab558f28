// Requests to the server that these pages come from. Nothing else in `web/` calls `fetch` on it.
import { apiKey } from "./key";
import { noteAnswer, noteTrouble } from "./connection";
import { ApiError, asApiError, errorOf } from "./errors";
import { type ServerComment, type ServerEvent, serverEvents } from "./sse";

const RETRIES = 3;
const FIRST_PAUSE = 400;

export interface RequestOptions {
  signal?: AbortSignal | undefined;
  /** How often a request that failed in passing is repeated. */
  retries?: number;
}

/** One request. path: without a slash at its head, so that the pages work below any address. Throws ApiError. */
export async function send(path: string, init: RequestInit = {}): Promise<Response> {
  const headers = new Headers(init.headers);
  if (apiKey.value) headers.set("authorization", `Bearer ${apiKey.value}`);
  try {
    const response = await fetch(path, { ...init, headers });
    if (!response.ok) throw await errorOf(response);
    noteAnswer();
    return response;
  } catch (error) {
    const known = asApiError(error);
    if (known instanceof ApiError) noteTrouble(known);
    throw known;
  }
}

/** The JSON that a GET returns. Repeats what fails in passing, with growing pauses. Throws ApiError. */
export async function getJson<T>(path: string, options: RequestOptions = {}): Promise<T> {
  return repeated(options, async () => (await send(path, { signal: options.signal ?? null })).json() as Promise<T>);
}

/** The JSON that a POST of a JSON body returns. Not repeated unless `retries` says so. Throws ApiError. */
export async function postJson<T>(path: string, body: unknown, options: RequestOptions = {}): Promise<T> {
  const once = { retries: 0, ...options };
  return repeated(once, async () => (await post(path, body, once.signal)).json() as Promise<T>);
}

/** The events of a POST, as they arrive. Throws ApiError, also when the connection breaks in the middle. */
export async function* postEvents(
  path: string,
  body: unknown,
  signal?: AbortSignal,
): AsyncGenerator<ServerEvent | ServerComment> {
  const response = await post(path, body, signal);
  try {
    yield* serverEvents(response);
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
    const broken = new ApiError("broken", "The connection broke off in the middle of the answer.");
    noteTrouble(broken);
    throw broken;
  }
}

function post(path: string, body: unknown, signal?: AbortSignal | undefined): Promise<Response> {
  const headers = { "content-type": "application/json" };
  return send(path, { method: "POST", headers, body: JSON.stringify(body), signal: signal ?? null });
}

async function repeated<T>(options: RequestOptions, attempt: () => Promise<T>): Promise<T> {
  const retries = options.retries ?? RETRIES;
  for (let tried = 0; ; tried += 1) {
    try {
      return await attempt();
    } catch (error) {
      const again = error instanceof ApiError && error.passing && tried < retries && !options.signal?.aborted;
      if (!again) throw error;
      await pause(error.retryAfter ? error.retryAfter * 1000 : FIRST_PAUSE * 2 ** tried);
    }
  }
}

function pause(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}
