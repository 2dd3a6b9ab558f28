// The text of a PDF, page by page, loaded when the first PDF is attached. pdf.js parses it in a worker; nothing in the
// file is run or drawn.

import { GlobalWorkerOptions, getDocument } from "pdfjs-dist";
import type { PDFDocumentProxy, PDFPageProxy } from "pdfjs-dist";
import worker from "pdfjs-dist/build/pdf.worker.min.mjs?url";
import { FileProblem } from "./read-file";
import type { Reading } from "./read-file";

GlobalWorkerOptions.workerSrc = worker;

const PROBLEMS: Record<string, string> = {
  PasswordException: "The PDF is locked with a password. Save it without one and attach it again.",
  InvalidPDFException: "The PDF is damaged.",
};

/** The text of all pages, each with its number. Throws FileProblem, or the reason of the signal. */
export async function readPdf(bytes: Uint8Array, { signal, onStep }: Reading): Promise<string> {
  const task = getDocument({ data: bytes, isEvalSupported: false, useWasm: false, verbosity: 0 });
  const stop = (): void => void task.destroy();
  signal.addEventListener("abort", stop);
  try {
    const pages = await pagesOf(await task.promise, signal, onStep);
    if (pages.every((page) => page === "")) {
      throw new FileProblem("The PDF has no text, only pictures of it (a scan). It needs text recognition first.");
    }
    return pages.map((page, index) => `[page ${index + 1}]\n${page}`).join("\n\n");
  } catch (error) {
    signal.throwIfAborted();
    const name = error instanceof Error ? error.name : "";
    throw error instanceof FileProblem ? error : new FileProblem(PROBLEMS[name] ?? "The PDF cannot be read.");
  } finally {
    signal.removeEventListener("abort", stop);
    await task.destroy();
  }
}

async function pagesOf(document: PDFDocumentProxy, signal: AbortSignal, onStep: Reading["onStep"]): Promise<string[]> {
  const pages: string[] = [];
  for (let number = 1; number <= document.numPages; number++) {
    signal.throwIfAborted();
    onStep(`page ${number} of ${document.numPages}`);
    const page = await document.getPage(number);
    pages.push(await textOfPage(page));
    page.cleanup();
  }
  return pages;
}

/** The pieces of a page in the file's order; a new line where the file says so. */
async function textOfPage(page: PDFPageProxy): Promise<string> {
  const { items } = await page.getTextContent();
  const pieces = items.map((item) => ("str" in item ? item.str + (item.hasEOL ? "\n" : "") : ""));
  return pieces.join("").trim();
}
