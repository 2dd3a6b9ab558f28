"""The interfaces that clients speak, and what they share: one common request, its prompt, one answer in the making."""
