"""Pictures of images, of points in the plane and of their trajectories."""
