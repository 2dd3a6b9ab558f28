"""Post-training (report 5): supervised fine-tuning, GRPO specialists, on-policy distillation.

Prompt -> Rollout -> Group -> Sample -> a batch of the trainer. Generation is reached only through `TokenGenerator`,
weights leave only through `WeightSink` (both in `dsv4.generation`).
"""
