// The browser's database, with promises: one for each owner, with two tables, conversations and their messages.
import { ownName } from "./owner";

const NAME = "dsv4";
const VERSION = 1;

const opened = new Map<string, Promise<IDBDatabase>>();

function open(name = ownName(NAME)): Promise<IDBDatabase> {
  const known = opened.get(name);
  if (known) return known;
  const found = new Promise<IDBDatabase>((resolve, reject) => {
    const request = indexedDB.open(name, VERSION);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("conversations", { keyPath: "id" });
      const messages = request.result.createObjectStore("messages", { keyPath: "id" });
      messages.createIndex("conversation", "conversation");
    };
    request.onsuccess = () => {
      // another tab wants a newer form: let it, this tab opens again when it needs to
      request.result.onversionchange = () => {
        request.result.close();
        opened.delete(name);
      };
      resolve(request.result);
    };
    request.onerror = () => reject(request.error);
  });
  opened.set(name, found);
  return found;
}

export type Table = "conversations" | "messages";
const TABLES: readonly Table[] = ["conversations", "messages"];

function finished<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** All entries of a table. */
export async function all<T>(table: Table): Promise<T[]> {
  return finished<T[]>((await open()).transaction(table).objectStore(table).getAll());
}

/** All messages of a conversation. */
export async function messagesIn<T>(conversation: string): Promise<T[]> {
  const index = (await open()).transaction("messages").objectStore("messages").index("conversation");
  return finished<T[]>(index.getAll(conversation));
}

/** Writes and removes entries in one transaction: all of them or none. */
export async function change(
  puts: readonly { table: Table; value: object }[],
  deletes: readonly { table: Table; id: string }[] = [],
): Promise<void> {
  const transaction = (await open()).transaction(TABLES, "readwrite");
  for (const { table, value } of puts) transaction.objectStore(table).put(value);
  for (const { table, id } of deletes) transaction.objectStore(table).delete(id);
  await ended(transaction);
}

/** Moves what was written without a key to an owner. */
export async function giveUnowned(owner: string): Promise<void> {
  const [from, to] = await Promise.all([open(ownName(NAME, "")), open(ownName(NAME, owner))]);
  for (const table of TABLES) {
    const entries = await finished<object[]>(from.transaction(table).objectStore(table).getAll());
    const added = to.transaction(table, "readwrite");
    for (const entry of entries) added.objectStore(table).put(entry);
    await ended(added);
  }
  const emptied = from.transaction(TABLES, "readwrite");
  for (const table of TABLES) emptied.objectStore(table).clear();
  await ended(emptied);
}

async function ended(transaction: IDBTransaction): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onerror = () => reject(transaction.error);
    transaction.onabort = () => reject(transaction.error ?? new Error("the browser's storage is full"));
  });
}
