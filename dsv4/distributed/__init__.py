"""Training on many processes: meshes, sharding, experts and documents split over ranks. Built on torch.distributed."""
