// Markdown, maths and code on the pages.

export { Markdown } from "./markdown";
