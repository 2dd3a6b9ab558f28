import { PageHead } from "../shell/page-head";

export default function EnginePage() {
  return (
    <>
      <PageHead title="Engine" />
      <div class="page-body" />
    </>
  );
}
