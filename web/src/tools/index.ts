// What the chat uses of the tools.
export { runAgent } from "./agent";
export { CallCard } from "./call-card";
export { askUser, showCall } from "./calls";
export { readableName } from "./readable";
export { readyTools } from "./servers";
export { NO_TOOLS, ToolsButton } from "./tools-dialog";
export { type Tool, type ToolResult, asFunction } from "./types";
