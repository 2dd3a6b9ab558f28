import { PageHead } from "../shell/page-head";

export default function UsagePage() {
  return (
    <>
      <PageHead title="Usage" />
      <div class="page-body" />
    </>
  );
}
