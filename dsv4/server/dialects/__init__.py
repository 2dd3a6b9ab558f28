"""The interfaces for clients, and the parts they share: the common request, its prompt, the job that answers it."""
