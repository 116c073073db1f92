"""A teacher's answers about the student's views: asked, or kept on the disk."""
