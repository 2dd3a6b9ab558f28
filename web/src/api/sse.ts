// Server-sent events, read as they arrive.

export interface ServerEvent {
  /** The name after `event:`; "message" without one. */
  name: string;
  data: string;
}

/** A line that begins with a colon: a sign of life, perhaps with the progress of the prompt. */
export interface ServerComment {
  comment: string;
}

/** Takes text in pieces of any size and returns what is complete. Lines end in LF, CR or CR LF, as the standard says. */
export class EventParser {
  #rest = "";
  #name = "";
  #data: string[] = [];

  push(text: string): (ServerEvent | ServerComment)[] {
    const found: (ServerEvent | ServerComment)[] = [];
    // a CR at the end may be the first half of a CR LF
    const whole = this.#rest + text;
    const held = whole.endsWith("\r") ? whole.length - 1 : whole.length;
    const lines = whole.slice(0, held).split(/\r\n|\n|\r/);
    this.#rest = (lines.pop() ?? "") + whole.slice(held);
    for (const line of lines) this.#line(line, found);
    return found;
  }

  #line(line: string, found: (ServerEvent | ServerComment)[]): void {
    if (line === "") {
      if (this.#data.length) found.push({ name: this.#name || "message", data: this.#data.join("\n") });
      this.#name = "";
      this.#data = [];
      return;
    }
    if (line.startsWith(":")) {
      found.push({ comment: line.slice(1).trim() });
      return;
    }
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "data") this.#data.push(value);
    else if (field === "event") this.#name = value;
  }
}

/** The events of a response, as they arrive. Throws what reading throws. */
export async function* serverEvents(response: Response): AsyncGenerator<ServerEvent | ServerComment> {
  if (!response.body) return;
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  const parser = new EventParser();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield* parser.push(decoder.decode(value, { stream: true }));
    }
  } finally {
    reader.cancel().catch(() => undefined);
  }
}
