"""The teacher's outputs for the student's views: computed in every step, or stored on the disk."""
