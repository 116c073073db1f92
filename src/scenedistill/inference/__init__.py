"""Any finished network, asked about images and rasters."""
