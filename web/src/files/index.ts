// Files that go with a question.

export { detachAll, filesReady, takeAttachments, usableFiles } from "./attachments";
export { FileDrop } from "./file-drop";
export { AttachButton, FileList } from "./file-list";
export { RoomMeter } from "./room-meter";
export { SentFile } from "./sent-file";
