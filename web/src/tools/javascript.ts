// JavaScript that a model wrote, in the sandbox page of the server: a frame with an origin of its own and no network.
import type { ToolResult } from "./types";

const SECONDS = 5;
const MOST_CHARACTERS = 10_000;
/** Beyond the limit of the code itself: the frame must load. */
const FRAME_SECONDS = 15;

/** Runs code and returns what it printed and its value. Rejects with AbortError when stopped. */
export function runJavaScript(code: string, signal: AbortSignal): Promise<ToolResult> {
  const frame = document.createElement("iframe");
  // no "allow-same-origin": the frame must reach nothing of this page
  frame.setAttribute("sandbox", "allow-scripts");
  frame.setAttribute("aria-hidden", "true");
  frame.hidden = true;
  frame.src = "sandbox";
  return new Promise<ToolResult>((resolve, reject) => {
    const request = { code, milliseconds: SECONDS * 1000, characters: MOST_CHARACTERS };
    const clock = setTimeout(() => end({ text: "the sandbox does not answer", failed: true }), (SECONDS + FRAME_SECONDS) * 1000);
    const received = ({ source, data }: MessageEvent) => {
      if (source !== frame.contentWindow) return;
      // "*": an origin of its own has no name
      if (data === "ready") frame.contentWindow?.postMessage(request, "*");
      else end(resultOf(data));
    };
    const stopped = () => {
      clean();
      reject(new DOMException("stopped", "AbortError"));
    };
    const clean = () => {
      clearTimeout(clock);
      removeEventListener("message", received);
      signal.removeEventListener("abort", stopped);
      frame.remove();
    };
    const end = (result: ToolResult) => {
      clean();
      resolve(result);
    };
    addEventListener("message", received);
    signal.addEventListener("abort", stopped);
    document.body.append(frame);
  });
}

/** What the frame said. The code could have sent anything, so nothing of it is trusted. */
export function resultOf(data: unknown): ToolResult {
  const { lines, failed } = (typeof data === "object" && data !== null ? data : {}) as { lines?: unknown; failed?: unknown };
  const texts = Array.isArray(lines) ? lines.slice(0, MOST_CHARACTERS).filter((line) => typeof line === "string") : [];
  const text = texts.join("\n").slice(0, MOST_CHARACTERS + 1000);
  return { text: text || "(the code printed nothing and has no value)", failed: failed !== false };
}
