// What pages use of the shell.
export { Button } from "./button";
export { Dialog } from "./dialog";
export { Icon } from "./icon";
export { Menu } from "./menu";
export { ErrorNotice } from "./notice";
export { PageHead } from "./page-head";
export { addressOf, follow, go, route } from "./router";
export { Segments } from "./segments";
export { closeDrawer, isDrawerOpen, isSideOpen, toggleSide } from "./side";
export { toast } from "./toast";
