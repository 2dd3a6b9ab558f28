import assert from "node:assert/strict";
import { test } from "node:test";
import { readFile } from "./read-file";

/** A PDF of pages with lines of text, with the table of its objects. */
function pdf(pages: readonly (readonly string[])[]): Blob {
  const kids = pages.map((_, at) => `${4 + 2 * at} 0 R`).join(" ");
  const objects = [
    "<</Type/Catalog/Pages 2 0 R>>",
    `<</Type/Pages/Kids[${kids}]/Count ${pages.length}>>`,
    "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
  ];
  for (const [at, lines] of pages.entries()) {
    const drawn = lines.map((line) => `(${line}) Tj 0 -20 Td`).join(" ");
    const stream = lines.length > 0 ? `BT /F 12 Tf 50 700 Td ${drawn} ET` : "";
    const resources = "/MediaBox[0 0 600 800]/Resources<</Font<</F 3 0 R>>>>";
    objects.push(`<</Type/Page/Parent 2 0 R${resources}/Contents ${5 + 2 * at} 0 R>>`);
    objects.push(`<</Length ${stream.length}>>stream\n${stream}\nendstream`);
  }
  let body = "%PDF-1.4\n";
  const places = objects.map((object, at) => {
    const place = body.length;
    body += `${at + 1} 0 obj${object}endobj\n`;
    return `${String(place).padStart(10, "0")} 00000 n \n`;
  });
  const size = objects.length + 1;
  const table = `xref\n0 ${size}\n0000000000 65535 f \n${places.join("")}trailer<</Size ${size}/Root 1 0 R>>\n`;
  return new Blob([`${body}${table}startxref\n${body.length}\n%%EOF`]);
}

test("the text of a PDF, page by page", async () => {
  const steps: string[] = [];
  const reading = { signal: new AbortController().signal, onStep: (step: string) => steps.push(step) };
  const text = await readFile(pdf([["First line", "Second line"], ["Other page"]]), reading);
  assert.equal(text, "[page 1]\nFirst line\nSecond line\n\n[page 2]\nOther page");
  assert.deepEqual(steps, ["loading the PDF reader", "page 1 of 2", "page 2 of 2"]);
});

const quiet = { signal: new AbortController().signal, onStep: () => {} };

test("a scan is refused with a sentence", async () => {
  await assert.rejects(readFile(pdf([[]]), quiet), /^Error: The PDF has no text, only pictures of it/);
});

test("a damaged PDF is refused with a sentence", async () => {
  await assert.rejects(readFile(new Blob(["%PDF-1.7\nnothing else"]), quiet), /^Error: The PDF is damaged\.$/);
});
