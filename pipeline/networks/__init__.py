"""torchvision's networks: building, training and running them on packed splits."""
