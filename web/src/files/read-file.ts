// A file as the text that the model reads, or a sentence that says why there is none.

import { sizeText } from "./names";

export const MOST_BYTES = 32_000_000;

/** A file that cannot be used; the message is a sentence for the user. */
export class FileProblem extends Error {}

export interface Reading {
  signal: AbortSignal;
  /** Told where reading takes a while: "page 3 of 20". */
  onStep: (step: string) => void;
}

/** What other kinds of files are, by the bytes at their beginning; no offset but 0 is looked at. */
const OTHER_KINDS: readonly [name: string, bytes: readonly number[]][] = [
  ["a picture", [0x89, 0x50, 0x4e, 0x47]],
  ["a picture", [0xff, 0xd8, 0xff]],
  ["a picture", [0x47, 0x49, 0x46, 0x38]],
  ["a picture or sound", [0x52, 0x49, 0x46, 0x46]],
  ["an archive or an Office document", [0x50, 0x4b, 0x03, 0x04]],
  ["an archive", [0x1f, 0x8b]],
  ["an archive", [0x37, 0x7a, 0xbc, 0xaf]],
  ["an old Office document", [0xd0, 0xcf, 0x11, 0xe0]],
  ["a program", [0x7f, 0x45, 0x4c, 0x46]],
  ["sound", [0x49, 0x44, 0x33]],
];
const PDF = [0x25, 0x50, 0x44, 0x46, 0x2d];
const ADVICE = "Text, Markdown, code and PDF files can be attached.";

/** The text of a file. Throws FileProblem with a sentence, or the reason of the signal. */
export async function readFile(file: Blob, { signal, onStep }: Reading): Promise<string> {
  if (file.size === 0) throw new FileProblem("The file is empty.");
  if (file.size > MOST_BYTES) {
    throw new FileProblem(`The file has ${sizeText(file.size)}; at most ${sizeText(MOST_BYTES)} can be attached.`);
  }
  const bytes = new Uint8Array(await file.arrayBuffer());
  signal.throwIfAborted();
  const text = isPdf(bytes) ? await pdfText(bytes, { signal, onStep }) : textOfBytes(bytes);
  if (text.trim() === "") throw new FileProblem("The file has no text.");
  return text;
}

/** A PDF's header may stand behind up to a kilobyte of other bytes. */
function isPdf(bytes: Uint8Array): boolean {
  for (let at = 0; at < Math.min(1024, bytes.length); at++) if (startsWith(bytes.subarray(at), PDF)) return true;
  return false;
}

async function pdfText(bytes: Uint8Array, reading: Reading): Promise<string> {
  reading.onStep("loading the PDF reader");
  const { readPdf } = await import("./read-pdf");
  return readPdf(bytes, reading);
}

/** The text of bytes in UTF-8, UTF-16 with a mark, or else Windows-1252. Throws FileProblem for what is no text. */
export function textOfBytes(bytes: Uint8Array): string {
  const kind = OTHER_KINDS.find(([, head]) => startsWith(bytes, head));
  if (kind !== undefined) throw new FileProblem(`This is ${kind[0]}, which the model cannot read. ${ADVICE}`);
  if (startsWith(bytes, [0xff, 0xfe])) return new TextDecoder("utf-16le").decode(bytes);
  if (startsWith(bytes, [0xfe, 0xff])) return new TextDecoder("utf-16be").decode(bytes);
  if (looksBinary(bytes)) throw new FileProblem(`This is not a text file. ${ADVICE}`);
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    return new TextDecoder("windows-1252").decode(bytes);
  }
}

/** Whether there are bytes that no text has: null, or many control characters. */
function looksBinary(bytes: Uint8Array): boolean {
  let controls = 0;
  for (const byte of bytes) {
    if (byte === 0) return true;
    // tab, line feed, form feed, carriage return and escape stand in texts and in logs
    if (byte < 0x20 && byte !== 9 && byte !== 10 && byte !== 12 && byte !== 13 && byte !== 27) controls += 1;
  }
  return controls > bytes.length / 100;
}

function startsWith(bytes: Uint8Array, head: readonly number[]): boolean {
  return bytes.length >= head.length && head.every((byte, index) => bytes[index] === byte);
}
