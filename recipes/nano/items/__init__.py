"""The tasks that the bundled model learns: each module generates items of a family, with worked-out reasoning."""
