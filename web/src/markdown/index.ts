// Markdown, maths and code on the pages.

export { codeRuns } from "./blocks";
export { Markdown } from "./markdown";
