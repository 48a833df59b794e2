"""Pictures of images, points of the plane and trajectories."""
