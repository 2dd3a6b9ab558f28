import { PageHead } from "../shell/page-head";

export default function TrainingPage() {
  return (
    <>
      <PageHead title="Training" />
      <div class="page-body" />
    </>
  );
}
