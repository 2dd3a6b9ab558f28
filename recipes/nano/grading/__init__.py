"""How a model folder is graded through its server: the questions, the two clients, the figures."""
