import { PageHead } from "../shell/page-head";

export default function ChatPage() {
  return (
    <>
      <PageHead title="Chat" />
      <div class="page-body" />
    </>
  );
}
