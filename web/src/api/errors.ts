// What can go wrong between a page and its server, in words for people.

/**
 * unreachable: nobody answers; key: a key is needed or wrong; busy: try again later; refused: the request is wrong;
 * failed: the server has a fault; broken: an answer ended in its middle.
 */
export type Trouble = "unreachable" | "key" | "busy" | "refused" | "failed" | "broken";

export class ApiError extends Error {
  constructor(
    readonly trouble: Trouble,
    message: string,
    readonly status = 0,
    /** Seconds after which the server wants to be asked again. */
    readonly retryAfter?: number,
  ) {
    super(message);
    this.name = "ApiError";
  }

  /** Whether the same request may succeed later. */
  get passing(): boolean {
    return this.trouble === "unreachable" || this.trouble === "busy" || this.trouble === "broken";
  }
}

/** A browser says only "Failed to fetch" or "network error" when nobody answers; this says it in words. */
export function unreachable(): ApiError {
  return new ApiError("unreachable", "The server does not answer. It may have stopped, or it is starting.");
}

/** The error of a response that is not a success. */
export async function errorOf(response: Response): Promise<ApiError> {
  const wait = Number(response.headers.get("retry-after"));
  const message = await messageOf(response);
  return new ApiError(troubleOf(response.status), message, response.status, wait > 0 ? wait : undefined);
}

function troubleOf(status: number): Trouble {
  if (status === 401) return "key";
  if (status === 429 || status === 503 || status === 529) return "busy";
  return status >= 500 ? "failed" : "refused";
}

async function messageOf(response: Response): Promise<string> {
  try {
    const body = (await response.json()) as { error?: { message?: unknown } };
    if (typeof body.error?.message === "string") return body.error.message;
  } catch {
    // not JSON: a proxy, say
  }
  return `the server answered with status ${response.status}`;
}

/** What an error says; whatever else was thrown, as a text. */
export function errorText(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** Whether somebody stopped the request on purpose. */
export function isStop(error: unknown): boolean {
  return error instanceof DOMException && error.name === "AbortError";
}

/** Any error as an ApiError; stops stay what they are. */
export function asApiError(error: unknown): unknown {
  if (error instanceof ApiError || isStop(error)) return error;
  return error instanceof TypeError ? unreachable() : error;
}
