// What esbuild makes of style sheets.
declare module "*.css?url" {
  const url: string;
  export default url;
}
declare module "*.css";
declare module "*.mjs?url" {
  const url: string;
  export default url;
}
