"""What the server keeps on disk for its clients: stored responses and the conversations of the chat page."""
