"""HTML report of a run or a grid."""
