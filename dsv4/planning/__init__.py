"""What a model needs and how it will run, computed before anything of it is allocated.

`numerics` chooses the mode of a folder, `memory` knows what the machine has free, `cache_budget` divides the cache's
share. Nothing is imported here, so that `memory` stays without torch.
"""
