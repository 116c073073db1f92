"""Local web page that classifies uploaded images and rasters."""
