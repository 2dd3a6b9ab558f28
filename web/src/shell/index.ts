// What pages use of the shell.
export { Button } from "./button";
export { Dialog } from "./dialog";
export { Icon } from "./icon";
export { loadStyle } from "./load-style";
export { Menu, type MenuItem } from "./menu";
export { PageHead } from "./page-head";
export { Panel } from "./panel";
export { addressOf, follow, go, route } from "./router";
export { Segments } from "./segments";
export { closeDrawer, isSideOpen, toggleSide } from "./side";
export { toast } from "./toast";
