// Style sheets that only a lazy part needs, imported as "x.css?url".

const loading = new Map<string, Promise<void>>();

/** Adds a sheet to the page, once; resolves when it applies. */
export function loadStyle(url: string): Promise<void> {
  let loaded = loading.get(url);
  if (!loaded) {
    loaded = new Promise((resolve, reject) => {
      const link = document.createElement("link");
      link.rel = "stylesheet";
      link.href = url;
      link.onload = () => resolve();
      link.onerror = () => reject(new Error(`cannot load ${url}`));
      document.head.append(link);
    });
    loading.set(url, loaded);
  }
  return loaded;
}
