// The browser's database, with promises. Two tables: conversations, and their messages.

const NAME = "dsv4";
const VERSION = 1;

let opened: Promise<IDBDatabase> | undefined;

function open(): Promise<IDBDatabase> {
  opened ??= new Promise<IDBDatabase>((resolve, reject) => {
    const request = indexedDB.open(NAME, VERSION);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("conversations", { keyPath: "id" });
      const messages = request.result.createObjectStore("messages", { keyPath: "id" });
      messages.createIndex("conversation", "conversation");
    };
    request.onsuccess = () => {
      // another tab wants a newer form: let it, this tab opens again when it needs to
      request.result.onversionchange = () => {
        request.result.close();
        opened = undefined;
      };
      resolve(request.result);
    };
    request.onerror = () => reject(request.error);
  });
  return opened;
}

export type Table = "conversations" | "messages";

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
  const transaction = (await open()).transaction(["conversations", "messages"], "readwrite");
  for (const { table, value } of puts) transaction.objectStore(table).put(value);
  for (const { table, id } of deletes) transaction.objectStore(table).delete(id);
  await new Promise<void>((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onerror = () => reject(transaction.error);
    transaction.onabort = () => reject(transaction.error ?? new Error("the browser's storage is full"));
  });
}
