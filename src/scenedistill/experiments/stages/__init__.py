"""The stages of a run: training of the teacher and the students, and their tests."""
