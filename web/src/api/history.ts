// Conversations on a server that was started with `--history DIR`.
import { ApiError } from "./errors";
import { getJson, send } from "./http";

export interface Listed {
  id: string;
  /** Changes with every write: the server's milliseconds since 1970. */
  updated: number;
}

/** Whether this server keeps conversations. */
export async function hasHistory(): Promise<boolean> {
  return (await getJson<{ features: { history?: boolean } }>("v1/props")).features.history === true;
}

/** What the server has. */
export async function listHistory(): Promise<Listed[]> {
  return (await getJson<{ data: Listed[] }>("v1/history")).data;
}

/** One document. Throws ApiError, 404 if it is gone. */
export async function readHistory<T>(id: string): Promise<T & Listed> {
  return getJson<T & Listed>(`v1/history/${id}`);
}

/**
 * Writes a document, if the server still has the version `known` (0: none). Returns the new version; undefined if it
 * has another one.
 */
export async function writeHistory(id: string, document: { title: string }, known: number): Promise<number | undefined> {
  const headers = { "content-type": "application/json", "if-match": `"${known}"` };
  const init = { method: "PUT", headers, body: JSON.stringify(document) };
  try {
    return ((await (await send(`v1/history/${id}`, init)).json()) as Listed).updated;
  } catch (error) {
    if (error instanceof ApiError && error.status === 412) return undefined;
    throw error;
  }
}

/** Removes a document, if it is still there. */
export async function deleteHistory(id: string): Promise<void> {
  try {
    await send(`v1/history/${id}`, { method: "DELETE" });
  } catch (error) {
    if (!(error instanceof ApiError) || error.status !== 404) throw error;
  }
}
