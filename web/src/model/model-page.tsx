import { PageHead } from "../shell/page-head";

export default function ModelPage() {
  return (
    <>
      <PageHead title="Model" />
      <div class="page-body" />
    </>
  );
}
